"""One small adapter of every family for one sparse base; a new family is one line of `FAMILIES`.

The base has one layer; adapters sit on q, v and down, so that wide, narrow and non-square
weights are met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.adapters.adalora import write_adalora
from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.ia3 import write_ia3
from exporter.adapters.load import load_adapter
from exporter.adapters.loha import write_loha
from exporter.adapters.lokr import write_lokr
from exporter.adapters.losa import write_losa
from exporter.adapters.pooling import write_pooling
from exporter.adapters.s2ft import write_s2ft
from exporter.adapters.shira import write_shira
from exporter.adapters.sora import write_sora
from exporter.adapters.spp import write_spp
from exporter.adapters.vera import write_vera
from exporter.check.model import check_model
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from tests.adapters.forge import PREFIX, tensors_of, write_lora
from tests.check.folder import Array, write_model
from tests.sparsity.patterns import PATTERNS

HIDDEN, FFN, VOCAB = 32, 48, 20
LAYER = "model.layers.0."
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
Q, V, DOWN = (f"{LAYER}{m}" for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"))
ADAPTED = {m: SHAPES[m.removeprefix(LAYER)] for m in (Q, V, DOWN)}
NAMES = ["down_proj", "q_proj", "v_proj"]
RANK = 3
CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class World:
    """A base on disk, pruned to one pattern."""

    folder: Path
    checked: CheckedModel
    arrays: dict[str, Array]

    def kept(self, module: str) -> Array:
        """bool `[out, in]`."""
        return self.arrays[f"{module}.weight"] != 0

    def load(self, folder: Path) -> Adapter:
        """An adapter for this base."""
        checkpoint = self.checked.checkpoint

        def rows(tensor: str) -> Any:
            return lambda r0, r1: checkpoint.rows(tensor, r0, r1)

        base = BaseIdentity("base", checkpoint.identity, rows)
        return load_adapter(folder, self.checked.spec, base)


def make_world(folder: Path, pattern: str) -> World:
    """A base whose every linear has the pattern."""
    rng = np.random.default_rng(len(pattern))
    arrays: dict[str, Array] = {
        "model.embed_tokens.weight": rng.standard_normal((VOCAB, HIDDEN)),
        "model.norm.weight": np.ones(HIDDEN),
        f"{LAYER}input_layernorm.weight": np.ones(HIDDEN),
        f"{LAYER}post_attention_layernorm.weight": np.ones(HIDDEN),
        "lm_head.weight": rng.standard_normal((VOCAB, HIDDEN)),
    }
    for name, shape in SHAPES.items():
        weight = rng.standard_normal(shape)
        weight[~PATTERNS[pattern](rng, *shape)] = -0.0  # as many a pruner's product leaves it
        arrays[f"{LAYER}{name}.weight"] = weight
    arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    checkpoint = write_model(folder, arrays, CONFIG)
    return World(folder, check_model(checkpoint), arrays)


Make = Callable[[Path, World, np.random.Generator], Any]


def normal(rng: np.random.Generator, *shape: int) -> Any:
    """float32."""
    return rng.standard_normal(shape).astype(np.float32)


def pairs(rng: np.random.Generator) -> dict[str, tuple[Any, Any]]:
    """(A, B) by module."""
    return {m: (normal(rng, RANK, i), normal(rng, o, RANK)) for m, (o, i) in ADAPTED.items()}


def masks(world: World) -> dict[str, Mask]:
    """The base's own masks of the adapted modules."""
    return {m: Mask.from_bool(world.kept(m)) for m in ADAPTED}


# --- exact under a mask ----------------------------------------------------------------------


def losa(folder: Path, world: World, rng: np.random.Generator) -> None:
    write_losa(
        folder,
        base_name="base",
        base_sha256=world.checked.checkpoint.identity(),
        factors=pairs(rng),
        masks=masks(world),
        alpha=4.0,
        r_ref=2,
    )


def sparse_peft(folder: Path, world: World, rng: np.random.Generator) -> None:
    write_lora(folder, tensors_of(pairs(rng)), r=RANK, target_modules=NAMES, sparse_adapter=True)


def spp(folder: Path, world: World, rng: np.random.Generator) -> None:
    write_spp(
        folder,
        factors={m: (normal(rng, 16, i), normal(rng, o, 1)) for m, (o, i) in ADAPTED.items()},
    )


def ia3(folder: Path, world: World, rng: np.random.Generator) -> None:
    outputs = {m: normal(rng, ADAPTED[m][0]) for m in (Q, V)}
    write_ia3(folder, outputs, {DOWN: normal(rng, FFN)})


def shira_on_support(folder: Path, world: World, rng: np.random.Generator) -> None:
    """The oracle: a value for every kept weight."""
    places = {m: np.stack(world.kept(m).nonzero()) for m in ADAPTED}
    write_shira(folder, {m: (p, normal(rng, p.shape[1])) for m, p in places.items()}, r=None)


def pooling_masked(folder: Path, world: World, rng: np.random.Generator) -> None:
    write_pooling(folder, pool_config("exact"), pool_tensors(rng), masks(world))


def s2ft_masked(folder: Path, world: World, rng: np.random.Generator) -> None:
    """Trained columns whose values are zero where the base is."""
    deltas: dict[str, Any] = {}
    for module, (kind, index, values) in s2ft_deltas(rng).items():
        kept = world.kept(module)
        deltas[module] = kind, index, values * (kept[:, index] if kind == "cols" else kept[index])
    write_s2ft(folder, deltas)


def full_masked(folder: Path, world: World, rng: np.random.Generator) -> None:
    """A full fine-tune with masked gradients."""
    arrays = dict(world.arrays)
    for module, shape in ADAPTED.items():
        name = f"{module}.weight"
        arrays[name] = arrays[name] + normal(rng, *shape) * world.kept(module)
    write_model(folder, arrays, CONFIG)


# --- dense deltas ----------------------------------------------------------------------------


def lora(folder: Path, world: World, rng: np.random.Generator) -> None:
    write_lora(folder, tensors_of(pairs(rng)), r=RANK, target_modules=NAMES)


def rslora(folder: Path, world: World, rng: np.random.Generator) -> None:
    write_lora(folder, tensors_of(pairs(rng)), r=RANK, target_modules=NAMES, use_rslora=True)


def dora(folder: Path, world: World, rng: np.random.Generator) -> None:
    magnitudes = {
        f"{PREFIX}{m}.lora_magnitude_vector": np.abs(normal(rng, o)) + 1
        for m, (o, _) in ADAPTED.items()
    }
    tensors = {**tensors_of(pairs(rng)), **magnitudes}
    write_lora(folder, tensors, r=RANK, target_modules=NAMES, use_dora=True)


def sora(folder: Path, world: World, rng: np.random.Generator) -> None:
    gate = np.array([0.5, 0, -2], np.float32)
    factors = {m: (a, b, gate) for m, (a, b) in pairs(rng).items()}
    write_sora(folder, factors, alpha=4.0, r=RANK)


def adalora(folder: Path, world: World, rng: np.random.Generator) -> None:
    triplets = {m: (a, normal(rng, RANK), b) for m, (a, b) in pairs(rng).items()}
    write_adalora(folder, triplets, init_r=RANK, alpha=6.0)


def loha(folder: Path, world: World, rng: np.random.Generator) -> None:
    factors = {
        m: (normal(rng, o, 2), normal(rng, 2, i), normal(rng, o, 2), normal(rng, 2, i))
        for m, (o, i) in ADAPTED.items()
    }
    write_loha(folder, factors, alpha=2.0)


def lokr(folder: Path, world: World, rng: np.random.Generator) -> None:
    """PEFT splits 32 as 4 x 8, 16 as 4 x 4, 48 as 6 x 8."""
    split = {32: (4, 8), 16: (4, 4), 48: (6, 8)}
    factors = {
        m: {
            "w1": normal(rng, split[o][0], split[i][0]),
            "w2_a": normal(rng, split[o][1], 2),
            "w2_b": normal(rng, 2, split[i][1]),
        }
        for m, (o, i) in ADAPTED.items()
    }
    write_lokr(folder, factors, ADAPTED, rank=2, alpha=2.0)


def vera(folder: Path, world: World, rng: np.random.Generator) -> None:
    vectors = {m: (normal(rng, o), normal(rng, RANK)) for m, (o, _) in ADAPTED.items()}
    write_vera(folder, vectors, (normal(rng, RANK, FFN), normal(rng, HIDDEN, RANK)))


def shira_anywhere(folder: Path, world: World, rng: np.random.Generator) -> None:
    entries: dict[str, Any] = {}
    for module, (out, width) in ADAPTED.items():
        flat = rng.choice(out * width, out + width, replace=False)
        entries[module] = np.stack(np.divmod(flat, width)), normal(rng, out + width)
    write_shira(folder, entries, r=1)


def pool_config(train_mask: str) -> dict[str, Any]:
    return {
        "pool": "mean",
        "grouping": "balanced",
        "scale": 1.0,
        "train_mask": train_mask,
    }


def pool_tensors(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """G of sizes that do not divide the weight's."""
    return {m: {"pool_G": normal(rng, 5, 7)} for m in ADAPTED}


def pooling(folder: Path, world: World, rng: np.random.Generator) -> None:
    write_pooling(folder, pool_config("none"), pool_tensors(rng))


def s2ft_deltas(rng: np.random.Generator) -> dict[str, Any]:
    rows, columns = [1, 2, 7], [0, 9, 30, 31, 47]
    return {
        V: ("rows", rows, normal(rng, len(rows), HIDDEN)),
        DOWN: ("cols", columns, normal(rng, HIDDEN, len(columns))),
    }


def s2ft(folder: Path, world: World, rng: np.random.Generator) -> None:
    write_s2ft(folder, s2ft_deltas(rng))


def full(folder: Path, world: World, rng: np.random.Generator) -> None:
    """A full fine-tune, LISA for one, that filled the zeros."""
    arrays = dict(world.arrays)
    for module, shape in ADAPTED.items():
        arrays[f"{module}.weight"] = arrays[f"{module}.weight"] + normal(rng, *shape)
    write_model(folder, arrays, CONFIG)


EXACT: dict[str, Make] = {
    "LoSA": losa,
    "SparsePEFT": sparse_peft,
    "SPP": spp,
    "IA3": ia3,
    "SHiRA on the support": shira_on_support,
    "pooling, masked": pooling_masked,
    "S2FT, masked": s2ft_masked,
    "full, masked": full_masked,
}
DENSE: dict[str, Make] = {
    "LoRA": lora,
    "rsLoRA": rslora,
    "DoRA": dora,
    "SoRA": sora,
    "AdaLoRA": adalora,
    "LoHa": loha,
    "LoKr": lokr,
    "VeRA": vera,
    "SHiRA": shira_anywhere,
    "pooling": pooling,
    "S2FT": s2ft,
    "full": full,
}
FAMILIES = EXACT | DENSE
# Of the dense ones: those whose delta is one product of two factors, so that a branch computes it.
BRANCHES = ("LoRA", "rsLoRA", "SoRA")
