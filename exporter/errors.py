"""One catalogue of everything that can be wrong: code, exit status, cause and cure.

Every error a user can cause is a `SparseExportError` that carries what was found, what was
expected, in which file and tensor, and what to do. Nothing else reaches the terminal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar


@dataclass(frozen=True)
class ErrorKind:
    """One line of the catalogue: why it happens and the way out."""

    cause: str
    cure: str


CATALOGUE: dict[str, ErrorKind] = {
    # --- usage
    "usage": ErrorKind("The command line contradicts itself.", "See `sparse-export --help`."),
    "unknown-target": ErrorKind(
        "No installed package offers a target of this name.",
        "`sparse-export targets` lists what is here.",
    ),
    "output-exists": ErrorKind(
        "The output folder is there already.",
        "Name another with -o, or give --force to replace it.",
    ),
    "output-inside-input": ErrorKind(
        "The output lies in, is, or contains an input folder.", "Name an output elsewhere with -o."
    ),
    "merge-policy-needed": ErrorKind(
        "The adapter's delta has weight where the base is pruned, so merging must lose something.",
        "Choose with --on-merge: mask, refit, reprune, separate or densify; the table shows "
        "what each costs.",
    ),
    "calibration-needed": ErrorKind(
        "The merge policy, or quantise=gptq, needs text to measure on.",
        "Give --calibration FILE: a UTF-8 text like what the model will read.",
    ),
    # --- folders and files
    "input-missing": ErrorKind("A file or folder is not there.", "Check the path."),
    "input-unreadable": ErrorKind(
        "The system could not read a file.", "Check permissions and disk."
    ),
    "input-kind": ErrorKind("Something other than a plain file or folder.", "Give plain files."),
    "escape": ErrorKind(
        "A path leads out of the model folder.", "Use a folder that holds its files."
    ),
    "pickle-refused": ErrorKind(
        "Weights in a pickle file (.bin, .pt): reading one can run code.",
        "Convert it to safetensors with transformers' save_pretrained.",
    ),
    "ambiguous-weights": ErrorKind(
        "Two sets of weights lie in one folder.", "Keep the set you mean and move the other away."
    ),
    "lfs-pointer": ErrorKind(
        "A git-LFS pointer text stands in place of the weights.", "Run `git lfs pull`."
    ),
    "incomplete-download": ErrorKind(
        "A download into this folder was cut short.", "Finish the download."
    ),
    "output-failed": ErrorKind(
        "Writing the output failed.", "Free space or fix permissions; nothing was published."
    ),
    "locked": ErrorKind("Another process writes to this output.", "Wait for it to end."),
    # --- safetensors header, index, JSON
    "header-invalid": ErrorKind("A safetensors header breaks the format.", "Fetch the file again."),
    "header-duplicate": ErrorKind(
        "A safetensors header names a tensor twice.", "Write the file again with safetensors."
    ),
    "header-range": ErrorKind(
        "Byte ranges overlap, leave a hole, or miss the file's end.", "Fetch the file again."
    ),
    "file-truncated": ErrorKind("A file is shorter than its header says.", "Fetch it again."),
    "dtype-unsupported": ErrorKind(
        "A tensor is stored in a type that cannot be a weight here.",
        "Give a checkpoint in float32, float16 or bfloat16 that is not quantised.",
    ),
    "json-invalid": ErrorKind(
        "A JSON file does not parse or has the wrong form.", "Mend the file."
    ),
    "index-invalid": ErrorKind("The shard index is malformed.", "Fetch the index again."),
    "index-mismatch": ErrorKind(
        "The shard index and the shards disagree.", "Fetch index and shards of one revision."
    ),
    "shard-missing": ErrorKind("The index names a shard that is not here.", "Fetch the shard."),
    "shard-stale": ErrorKind(
        "A shard lies here that the index does not name.", "Move the stray file away."
    ),
    "tensor-duplicate": ErrorKind("One tensor lies in two shards.", "Keep one of them."),
    "limit-exceeded": ErrorKind(
        "An input passes a bound that protects this machine.", "See exporter/limits.py."
    ),
    # --- configuration and model
    "config-invalid": ErrorKind("config.json is not one we can read.", "Mend config.json."),
    "arch-unsupported": ErrorKind(
        "The architecture has no data file under exporter/arch/data.",
        "`sparse-export inspect` still works on the weights; see docs/ for adding a family.",
    ),
    "model-quantised": ErrorKind(
        "The checkpoint is quantised.", "Give the unquantised checkpoint it was made from."
    ),
    "tensor-missing": ErrorKind("The model lacks a tensor.", "Fetch or save the model again."),
    "tensor-unexpected": ErrorKind(
        "The model has a tensor that its architecture does not know.",
        "Check that config.json belongs to these weights.",
    ),
    "tensor-shape": ErrorKind(
        "A tensor's shape contradicts config.json.", "Check that the config belongs to the weights."
    ),
    "tie-conflict": ErrorKind(
        "config.json ties head and embedding, but their stored values differ.",
        "Set tie_word_embeddings to what is true for these weights.",
    ),
    "vocab-mismatch": ErrorKind(
        "Tokenizer, embedding, head and config disagree about the vocabulary.",
        "Resize the embedding with transformers, then save again.",
    ),
    "value-not-finite": ErrorKind(
        "NaN or infinity in a weight.", "Find where training or conversion broke it."
    ),
    "value-overflow": ErrorKind(
        "A value does not fit the output's type.", "Choose a wider --dtype."
    ),
    # --- masks
    "mask-invalid": ErrorKind("A mask file breaks its format.", "See docs/formats/masks.md."),
    "mask-mismatch": ErrorKind(
        "The mask and the weights disagree.",
        "Give the mask the model was pruned with, or the model that belongs to the mask.",
    ),
    "bitmask-invalid": ErrorKind(
        "A sparse-24-bitmask or sparse-bitmask tensor of compressed-tensors breaks its format.",
        "Fetch the checkpoint again, or compress it again with compressed-tensors 0.14.0.1.",
    ),
    "permutation-invalid": ErrorKind(
        "A list of channels is no permutation of them.",
        "Give the order that was saved when the channels were moved.",
    ),
    "pattern-mismatch": ErrorKind(
        "The model is not sparse in the way that was claimed.",
        "N:M counts kept weights here; see docs/reference/patterns.md.",
    ),
    # --- the packed layout
    "packed-invalid": ErrorKind(
        "A packed folder breaks its format, or config.json and the tensors disagree.",
        "Fetch the folder again, or export it again; see docs/formats/packed.md.",
    ),
    "packed-version": ErrorKind(
        "A packed folder of a version of the format that is not known here.",
        "Install the release of sparse-export that wrote it, or a later one.",
    ),
    "packed-cut": ErrorKind(
        "A packed weight cannot be cut there without another set of scales.",
        "Serve it with fewer tensor-parallel ranks, or export it with group=0.",
    ),
    # --- adapters
    "adapter-invalid": ErrorKind("The adapter's files break its format.", "Save it again."),
    "adapter-unsupported": ErrorKind(
        "This kind of adapter cannot be read yet.",
        "Merge or convert it with the tool it came from.",
    ),
    "adapter-option": ErrorKind(
        "An option of the adapter would change the result and is not supported.",
        "Retrain or convert without it.",
    ),
    "adapter-module": ErrorKind(
        "The adapter names a module that the model lacks.", "Check that it belongs to this base."
    ),
    "adapter-tensor-unused": ErrorKind(
        "A tensor of the adapter would not be used.", "Check names and prefixes of the file."
    ),
    "adapter-tensor-missing": ErrorKind("The adapter lacks a tensor.", "Save the adapter again."),
    "adapter-shape": ErrorKind(
        "A tensor of the adapter does not fit its module or its config.",
        "Check that adapter and base belong together.",
    ),
    "adapter-base": ErrorKind(
        "The adapter was trained on another base.", "Give the base it names."
    ),
    "adapter-empty": ErrorKind(
        "The adapter changes nothing.", "Check that training ran and that the right file was saved."
    ),
    "conversion-impossible": ErrorKind(
        "The format asked for cannot hold this adapter exactly.",
        "Merge it into the base with --adapter.",
    ),
    # --- engines
    "engine-missing": ErrorKind(
        "The engine is not installed here.", "`sparse-export targets install NAME` makes it."
    ),
    "engine-unfit": ErrorKind(
        "The engine cannot run on this machine or this Python.", "`sparse-export targets` says why."
    ),
    "engine-crashed": ErrorKind(
        "The engine's process died.", "See the engine's log in the message."
    ),
    "engine-timeout": ErrorKind("The engine gave no answer in time.", "Raise the time limit."),
    "engine-refused": ErrorKind("The engine refused the artefact.", "See the engine's message."),
    "target-option": ErrorKind(
        "An option of the target is unknown or out of range.", "Correct it."
    ),
    "target-refused": ErrorKind(
        "This target cannot express this model.", "The diagnostics name the reason."
    ),
    "install-failed": ErrorKind(
        "Making the engine's environment failed.", "The installer's last lines say why."
    ),
    # --- verification
    "verify-structure": ErrorKind(
        "The written files do not hold what they should.", "This is a bug: please report it."
    ),
    "verify-hash": ErrorKind("A file's bytes differ from its manifest.", "Export again."),
    "verify-numbers": ErrorKind(
        "The engine's results differ from the reference.", "Run again with --bisect."
    ),
    "reference-broken": ErrorKind(
        "The float32 reference did not do what it must, so nothing can be compared with it.",
        "This is a bug, or transformers changed: please report it with both versions.",
    ),
    "manifest-invalid": ErrorKind("The manifest is missing or malformed.", "Export again."),
    # --- tuning and benchmark
    "data-invalid": ErrorKind(
        "The training or calibration data cannot be used.", "Check the data."
    ),
    "task-invalid": ErrorKind(
        "A task's file breaks its form, or asks for code to be run.",
        "See docs/reference/evaluation.md.",
    ),
    "training-failed": ErrorKind(
        "Training stopped: no finite numbers, no memory, or a broken mask.",
        "Lower the learning rate or the batch; the message names step and tensor.",
    ),
    "values-not-finite": ErrorKind(
        "An activation or a result left the finite numbers.",
        "See which tensor is named: its weights, or those before it, are broken.",
    ),
    "hessian-singular": ErrorKind(
        "The second moments of a linear's inputs cannot be inverted, however damped.",
        "Give more calibration text.",
    ),
    "rates-invalid": ErrorKind(
        "A file of layer rates breaks its format.",
        "Give a JSON list with one share of zeros for each decoder block.",
    ),
    "rates-unsolved": ErrorKind(
        "The linear program of the layer rates has no solution.",
        "Give a deviation that leaves room around the target.",
    ),
    "suite-invalid": ErrorKind(
        "A suite file of sparse-bench breaks its format.",
        "`sparse-bench schema suite` prints it; see docs/reference/bench.md.",
    ),
    "machine-unlike": ErrorKind(
        "The two results are of machines that differ, so their times cannot be compared.",
        "Measure both on one machine, or give --force to see the ratios all the same.",
    ),
    "outputs-differ": ErrorKind(
        "The two artefacts do not compute what their self-tests say.", "Export them again."
    ),
}


class SparseExportError(Exception):
    """Base of every typed error; `exit_code` is what the process ends with.

    Args:
        code: key of `CATALOGUE`.
        found: what was found, in a user's words.
        expected: what would have been right.
        file: file name relative to the user's folder, or the path as the user gave it.
        tensor: tensor or module name.
        hint: what to do; the catalogue's cure where left out.
    """

    exit_code: ClassVar[int] = 3

    def __init__(
        self,
        code: str,
        found: str,
        *,
        expected: str | None = None,
        file: str | None = None,
        tensor: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.code = code
        self.found = found
        self.expected = expected
        self.file = file
        self.tensor = tensor
        self.hint = hint if hint is not None else CATALOGUE[code].cure
        super().__init__(str(self))

    def __str__(self) -> str:
        where = ", ".join(w for w in (self.file, self.tensor) if w)
        head = f"[{self.code}] {where + ': ' if where else ''}{self.found}"
        want = f"\n  expected: {self.expected}" if self.expected else ""
        return f"{head}{want}\n  what to do: {self.hint}"

    def as_dict(self) -> dict[str, str | int | None]:
        """The error for machines: the same fields, plus the exit status."""
        return asdict(
            _Fields(
                self.code,
                self.found,
                self.expected,
                self.file,
                self.tensor,
                self.hint,
                self.exit_code,
            )
        )


@dataclass(frozen=True)
class _Fields:
    code: str
    found: str
    expected: str | None
    file: str | None
    tensor: str | None
    hint: str
    exit_code: int


class VerificationFailed(SparseExportError):
    """The artefact is not what it should be; nothing is published."""

    exit_code = 1


class UsageError(SparseExportError):
    """The command cannot be carried out as given."""

    exit_code = 2


class InputRefused(SparseExportError):
    """A model, mask or adapter was refused."""

    exit_code = 3


class EngineUnfit(SparseExportError):
    """An engine is missing, unfit, or broke."""

    exit_code = 4
