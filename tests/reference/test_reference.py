"""The float32 reference against a slow float64 decoder, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.reference.session import TorchReference, open_reference
from exporter.errors import InputRefused, UsageError, VerificationFailed
from exporter.model import LowRank
from tests.reference.slow_decoder import SlowDecoder
from tests.tiny import KINDS, save_tiny
from tests.verify.fakes import MemoryModel, arrays_of, from_arrays, memory_model

TOKENS = tuple(int(t) for t in np.random.default_rng(3).integers(0, 259, 48))


def slow(model: MemoryModel) -> SlowDecoder:
    return SlowDecoder(model.checked.checkpoint.config, arrays_of(model))


def relative(got: Any, want: Any) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_prefill_and_cached_decode_equal_float64(kind: str, tied: bool, tmp_path: Path) -> None:
    bias = kind == "llama2"
    model = memory_model(save_tiny(kind, tmp_path / "m", sparsity=0.5, tied=tied, bias=bias))
    decoder, session = slow(model), open_reference(model)
    assert session.max_tokens == 256
    want = decoder.feed(TOKENS)[0]
    assert relative(session.prefill(TOKENS), want) < 2e-5
    for token in (7, 0, 258):
        assert relative(session.decode(token), decoder.step(token)[0]) < 2e-5
    session.close()


@pytest.mark.parametrize("kind", ["llama3", "qwen3"])
def test_hidden_states_equal_float64(kind: str, tmp_path: Path) -> None:
    model = memory_model(save_tiny(kind, tmp_path / "m"))
    want = slow(model).feed(TOKENS)[1]
    session = open_reference(model)
    got = session.hidden_states(TOKENS)
    assert list(got) == ["embedding", "layer.0", "layer.1", "norm"]
    for key, state in got.items():
        assert state.dtype == np.float32 and state.shape == want[key].shape
        assert relative(state, want[key]) < 2e-5, key
    session.close()


def test_linear_rope_scaling_equals_float64(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model = memory_model(save_tiny("llama2", tmp_path / "m", rope_parameters=rope))
    session = open_reference(model)
    assert relative(session.prefill(TOKENS), slow(model).feed(TOKENS)[0]) < 2e-5


def test_generate_is_greedy_over_the_cache(tmp_path: Path) -> None:
    model = memory_model(save_tiny("smollm2", tmp_path / "m"))
    decoder, session = slow(model), open_reference(model)
    row, want = decoder.feed(TOKENS)[0][-1], []
    for _ in range(12):
        want.append(int(row.argmax()))
        row = decoder.step(want[-1])[0]
    generation = session.generate(TOKENS, 12)
    assert list(generation.tokens) == want
    assert list(generation.seconds) == sorted(generation.seconds) and generation.seconds[0] > 0


def test_last_logits_are_the_last_row(tmp_path: Path) -> None:
    session = open_reference(memory_model(save_tiny("llama3", tmp_path / "m")))
    whole, last = session.prefill(TOKENS), session.prefill(TOKENS, logits="last")
    assert last.shape == (1, 272) and relative(last[0], whole[-1]) < 1e-6


def test_branch_is_added_into_the_weight(tmp_path: Path) -> None:
    folder = save_tiny("llama2", tmp_path / "m", sparsity=0.5)
    module = "model.layers.1.mlp.up_proj"
    draw = np.random.default_rng(0)
    branch = LowRank(
        draw.normal(size=(4, 64)).astype(np.float32),
        draw.normal(size=(160, 4)).astype(np.float32),
        0.25,
    )
    model = memory_model(folder, {module: branch})
    arrays = arrays_of(model)
    arrays[f"{module}.weight"] = arrays[f"{module}.weight"] + 0.25 * branch.b @ branch.a
    want = SlowDecoder(model.checked.checkpoint.config, arrays).feed(TOKENS)[0]
    assert relative(open_reference(model).prefill(TOKENS), want) < 2e-5
    assert relative(open_reference(memory_model(folder)).prefill(TOKENS), want) > 1e-2


def test_head_untied_by_an_adapter_is_its_own(tmp_path: Path) -> None:
    model = memory_model(save_tiny("llama3", tmp_path / "m"))
    arrays = arrays_of(model)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"][::-1].copy()
    config = {**model.checked.checkpoint.config, "tie_word_embeddings": False}
    untied = from_arrays(config, arrays, tmp_path)
    # The base's config still says "tied": the fused model's own word counts.
    checked = replace(untied.checked, checkpoint=model.checked.checkpoint, spec=untied.checked.spec)
    session = open_reference(replace(untied, checked=checked))
    assert relative(session.prefill(TOKENS), SlowDecoder(config, arrays).feed(TOKENS)[0]) < 2e-5


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: t.pop("model.norm.weight"), "tensor-missing"),
        (lambda t: t.update(odd=replace(t["model.norm.weight"], name="odd")), "tensor-unexpected"),
        (
            lambda t: t.update({"model.norm.weight": replace(t["model.norm.weight"], shape=(63,))}),
            "tensor-shape",
        ),
    ],
)
def test_every_parameter_is_filled_and_every_tensor_used(
    change: Any, code: str, tmp_path: Path
) -> None:
    model = memory_model(save_tiny("llama2", tmp_path / "m"))
    tensors = dict(model.tensors)
    change(tensors)
    with pytest.raises(InputRefused) as caught:
        open_reference(replace(model, tensors=tensors))
    assert caught.value.code == code


def test_branch_on_no_weight_is_refused(tmp_path: Path) -> None:
    branch = LowRank(np.zeros((1, 64), np.float32), np.zeros((64, 1), np.float32), 1.0)
    model = memory_model(save_tiny("llama2", tmp_path / "m"), {"model.layers.9.x": branch})
    with pytest.raises(InputRefused) as caught:
        open_reference(model)
    assert caught.value.code == "tensor-unexpected"


def test_unknown_model_type_and_remote_code(tmp_path: Path) -> None:
    model = memory_model(save_tiny("llama2", tmp_path / "m"))
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit('code of the model folder ran')")
    config = dict(model.checked.checkpoint.config)
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}

    def with_config(values: dict[str, Any]) -> MemoryModel:
        checkpoint = replace(model.checked.checkpoint, config=values)
        return replace(model, checked=replace(model.checked, checkpoint=checkpoint))

    open_reference(with_config(config)).close()
    with pytest.raises(InputRefused) as caught:
        open_reference(with_config({**config, "model_type": "evil"}))
    assert caught.value.code == "config-invalid"


def test_a_cache_that_does_not_grow_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_reference(memory_model(save_tiny("llama2", tmp_path / "m")))
    inner = session._net.forward

    def forgetful(**inputs: Any) -> Any:
        inputs["past_key_values"], inputs["use_cache"] = None, False
        return inner(**inputs)

    monkeypatch.setattr(session._net, "forward", forgetful)
    with pytest.raises(VerificationFailed) as caught:
        session.prefill(TOKENS)
    assert caught.value.code == "reference-broken" and caught.value.exit_code == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.prefill([]),
        lambda s: s.prefill([0] * 257),
        lambda s: s.prefill([272]),
        lambda s: s.prefill([-1]),
        lambda s: s.decode(0),
        lambda s: (s.prefill([0] * 256), s.decode(0)),
        lambda s: (s.close(), s.prefill([0])),
    ],
)
def test_misuse_is_a_typed_error(use: Any, tmp_path: Path) -> None:
    session = open_reference(memory_model(save_tiny("llama2", tmp_path / "m")))
    with pytest.raises(UsageError):
        use(session)


def test_facts_and_threads(tmp_path: Path) -> None:
    model, before = memory_model(save_tiny("llama3", tmp_path / "m")), torch.get_num_threads()
    session = open_reference(model, threads=1)
    assert isinstance(session, TorchReference)
    facts = session.facts()
    assert (facts.engine, facts.threads) == ("torch", 1)
    assert facts.weight_bytes == sum(a.nbytes for a in arrays_of(model).values())  # tie: once
    session.close()
    session.close()
    assert torch.get_num_threads() == before


def test_rows_are_streamed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.reference.build.BLOCK_BYTES", 4 * 64 * 7)
    model, widest = memory_model(save_tiny("llama2", tmp_path / "m")), 0
    tensors = {}
    for name, tensor in model.tensors.items():

        def rows(a: int, b: int, t: Any = tensor) -> Any:
            nonlocal widest
            values = t.rows(a, b)
            widest = max(widest, values.nbytes)
            return values

        tensors[name] = replace(tensor, rows=rows)
    session = open_reference(replace(model, tensors=tensors))
    assert widest <= 4 * 64 * 7
    assert relative(session.prefill(TOKENS), slow(model).feed(TOKENS)[0]) < 2e-5
