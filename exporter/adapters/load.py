"""Find the family of an adapter folder and read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from exporter.adapters.adalora import AdaloraFamily
from exporter.adapters.base import Adapter, AdapterFamily, BaseIdentity
from exporter.adapters.foreign import way_out
from exporter.adapters.full import FullFamily
from exporter.adapters.ia3 import Ia3Family
from exporter.adapters.ln_tuning import LnTuningFamily
from exporter.adapters.loha import LohaFamily
from exporter.adapters.lokr import LokrFamily
from exporter.adapters.lora import LoraFamily
from exporter.adapters.losa import LosaFamily
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.peft_files import CONFIG, label, peft_type, read_config, validated
from exporter.adapters.pooling import PoolingFamily
from exporter.adapters.s2ft import S2ftFamily
from exporter.adapters.s2ft_permuted import S2ftPermutedFamily
from exporter.adapters.shira import ShiraFamily
from exporter.adapters.sora import SoraFamily
from exporter.adapters.spp import SppFamily
from exporter.adapters.vera import VeraFamily
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.header import read_header

# Asked in turn. A LoSA bundle is also a readable LoRA folder, so LoSA is asked first.
FAMILIES: tuple[AdapterFamily, ...] = (
    LosaFamily(),
    SppFamily(),  # its config says LORA
    PoolingFamily(),
    S2ftFamily(),
    S2ftPermutedFamily(),  # a whole model, with the order of its channels
    LoraFamily(),
    AdaloraFamily(),
    LohaFamily(),
    LokrFamily(),
    Ia3Family(),
    VeraFamily(),
    ShiraFamily(),
    SoraFamily(),
    LnTuningFamily(),
    FullFamily(),
)


def load_adapter(path: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
    """Read the adapter folder `path` for the base that `spec` and `base` describe.

    Raises:
        InputRefused: `input-missing`, `input-kind`, `adapter-unsupported`, and what the family's
            `read` raises.
    """
    if not path.exists():
        raise InputRefused("input-missing", "no such adapter folder", file=str(path))
    if not path.is_dir():
        raise InputRefused(
            "input-kind",
            "an adapter is a folder, this is a file",
            expected=f"a folder with {CONFIG} and adapter_model.safetensors",
            file=path.name,
            hint="Give the folder that the file lies in.",
        )
    for family in FAMILIES:
        if family.claims(path):
            return _with_digests(_all_used(family.read(path, spec, base), path), path)
    raise _unclaimed(path)


def _with_digests(adapter: Adapter, folder: Path) -> Adapter:
    """Whatever the family: the digest of the mask that it was trained under, if it records one."""
    if not (folder / CONFIG).is_file():
        return adapter
    config = validated(PeftConfig, read_config(folder), label(folder, CONFIG))
    return replace(adapter, mask_sha256=config.mask_sha256 or None)


def _all_used(adapter: Adapter, folder: Path) -> Adapter:
    """Count the tensors again, without the family's help: none may be left over."""
    files = sorted(f for f in folder.glob("*.safetensors") if f.is_file())
    counts = {f.name: len(read_header(f).entries) for f in files}
    found = sum(counts.values())
    if found != adapter.tensors_used:
        listed = ", ".join(f"{n} in {name}" for name, n in counts.items())
        raise InputRefused(
            "adapter-tensor-unused",
            f"{adapter.tensors_used} of {found} tensors belong to the adapter ({listed})",
            expected="no other tensors in the folder",
            file=label(folder, files[0].name) if files else adapter.name,
            hint="Move files that are not the adapter's out of its folder.",
        )
    return replace(adapter, tensors_found=found)


def _unclaimed(path: Path) -> InputRefused:
    kind = peft_type(path)
    if kind is None:
        return InputRefused(
            "adapter-invalid",
            f"neither {CONFIG} nor the config of another kind of adapter in the folder",
            expected="an adapter as PEFT's save_pretrained writes it, a bundle with "
            "losa_config.json, pool_config.json or s2ft_config.json, or a whole fine-tuned model",
            file=path.name,
        )
    return InputRefused(
        "adapter-unsupported",
        f"peft_type {kind}",
        expected=", ".join(f.name for f in FAMILIES),
        file=label(path, CONFIG),
        hint=way_out(kind),
    )
