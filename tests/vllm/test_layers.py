"""Our layers beside vLLM's own, in vLLM's environment but without an engine, rank by rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from tests.vllm.conftest import RunInVllm
from tests.vllm.packing import How, linears, nm, pack_pair

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory, run_in_vllm: RunInVllm) -> dict[str, bool]:
    """4 heads and 2 KV heads of 24: on 4 ranks two share a KV head, and rows are cut inside of
    tiles (24 of 16); 328 columns are cut into 164 and 82, inside of tiles too."""
    where = tmp_path_factory.mktemp("layers")
    sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
    sizes |= {"hidden_size": 128, "intermediate_size": 328}
    model = save_tiny("llama2", where / "model", dtype="bfloat16", **sizes)
    q, k, _, o, gate, up, down = linears(0)  # v stays plain
    how = {q: How(values="int8"), k: nm(2, 8), o: How(values="int4", group=128)}
    how |= {gate: nm(1, 4, "int8"), up: How("dense", "int4", group=128), down: nm(4, 8, "fp8")}
    packed, dense = pack_pair(model, where, how)
    found: Any = run_in_vllm(HERE / "programs" / "layers.py", packed, dense, 1, 2, 4)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "layer", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "gate_proj", "up_proj"]
)
def test_every_rank_holds_what_a_dense_checkpoint_gives_it(
    layer: str, ranks: int, layers: dict[str, bool]
) -> None:
    """Weight and result; `up_proj` is a ReplicatedLinear here, which has the old loader only."""
    mine = {
        k: v for k, v in layers.items() if k.startswith(f"{ranks}/") and k.endswith(f".{layer}")
    }
    assert len(mine) == ranks and all(mine.values()), mine


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("layer", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "gate_proj"])
def test_the_kernels_compute_every_rank_s_block(
    layer: str, ranks: int, layers: dict[str, bool]
) -> None:
    """`up_proj` is stored dense; o_proj's columns are cut amid groups that share a scale."""
    wanted = f".{layer} sparse"
    mine = {k: v for k, v in layers.items() if k.startswith(f"{ranks}/") and k.endswith(wanted)}
    assert len(mine) == ranks and all(mine.values()), mine
