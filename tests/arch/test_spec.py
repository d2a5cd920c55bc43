"""The spec of a config: names and shapes are the model's own, and every bad field is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.arch.family import families
from exporter.arch.spec import ROLES, load_spec
from exporter.errors import InputRefused, SparseExportError
from tests.tiny import KINDS, make_tiny, tiny_config


def config_of(kind: str, **overrides: Any) -> dict[str, Any]:
    """The config.json of a tiny model, as parsed."""
    config = tiny_config(kind, **overrides).to_dict()
    return {**config, "architectures": None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [None, True])
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_are_those_of_the_model(kind: str, bias: bool | None, tied: bool):
    model = make_tiny(kind, bias=bias, tied=tied)
    spec = load_spec({**model.config.to_dict(), "architectures": [type(model).__name__]})
    actual = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert dict(spec.tensors()) == actual
    assert spec.tied is tied
    assert len(spec.linears()) == spec.layers * len(ROLES)
    for linear in spec.linears():
        assert actual[linear.weight] == (linear.out_features, linear.in_features)
        assert (f"{linear.module}.bias" in actual) is linear.bias


def test_order_is_layer_by_layer_in_role_order():
    spec = load_spec(config_of("llama2"))
    assert [(x.layer, x.role) for x in spec.linears()] == [(i, r) for i in (0, 1) for r in ROLES]
    names = list(spec.tensors())
    assert names[0] == spec.embedding and names[-1] == spec.head


def test_defaults_are_those_of_transformers():
    """A config that leaves a field out means what transformers takes it to mean."""
    import transformers

    for family in families().values():
        config = getattr(transformers, family.architecture.replace("ForCausalLM", "Config"))()
        for key, value in family.defaults.items():
            if key == "rope_theta":
                assert config.rope_parameters["rope_theta"] == value
            elif key == "sliding_window" and family.window == "flag":
                assert value == 4096  # the instance shows None while the flag is off
            elif value is not None:
                assert getattr(config, key) == value, (family.family, key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 2.0),
        ("num_hidden_layers", 5000),
        ("hidden_size", "64"),
        ("hidden_size", 1 << 30),
        ("hidden_size", 66),
        ("num_attention_heads", None),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 8),
        ("head_dim", 7),
        ("vocab_size", -1),
        ("vocab_size", 10**9),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 10**400),
        ("tie_word_embeddings", 1),
        ("attention_bias", "yes"),
        ("hidden_act", 3),
        ("max_position_embeddings", 0),
        ("rope_parameters", "llama3"),
        ("rope_parameters", {"rope_theta": 0.0}),
        ("rope_parameters", {"rope_theta": None}),
        ("rope_parameters", {"rope_type": "linear"}),
        ("rope_parameters", {"rope_type": "linear", "factor": 0}),
        ("rope_parameters", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_parameters", {"rope_type": "yarn"}),
    ],
)
def test_wrong_type_or_range_is_refused(key: str, value: Any):
    config = {**config_of("llama2", hidden_size=64), key: value}
    if key == "hidden_size":
        config["head_dim"] = None
    with pytest.raises(InputRefused) as caught:
        load_spec(config)
    assert caught.value.code == "config-invalid"
    assert key.split("_")[0] in caught.value.found


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_type": "gpt_neo"}, "arch-unsupported"),
        ({"model_type": ["llama"]}, "arch-unsupported"),
        ({"model_type": None}, "arch-unsupported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "arch-unsupported"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "arch-unsupported"),
        ({"hidden_act": "gelu"}, "arch-unsupported"),
        ({"partial_rotary_factor": 0.5}, "arch-unsupported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "arch-unsupported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "arch-unsupported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "arch-unsupported"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "arch-unsupported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "model-quantised"),
    ],
)
def test_what_cannot_be_lowered_is_refused(change: dict[str, Any], code: str):
    with pytest.raises(InputRefused) as caught:
        load_spec({**config_of("llama2"), **change})
    assert caught.value.code == code


def test_old_and_new_form_of_rope_are_one():
    new = config_of("llama3")
    numbers = dict(new["rope_parameters"])
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    theta = numbers.pop("rope_theta")
    for key in ("rope_type", "type"):
        scaling = {
            key: numbers["rope_type"],
            **{k: v for k, v in numbers.items() if k != "rope_type"},
        }
        spec = load_spec({**old, "rope_theta": theta, "rope_scaling": scaling})
        assert spec.rope == load_spec(new).rope
    plain = load_spec({**old, "rope_theta": 5000, "rope_scaling": None}).rope
    assert (plain.theta, plain.kind) == (5000.0, "default")


@pytest.mark.parametrize(
    ("kind", "change", "window"),
    [
        ("llama2", {"sliding_window": 16}, None),
        ("mistral", {"sliding_window": 16}, 16),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 256}, None),
        ("qwen2", {"sliding_window": 16}, None),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "layer_types": None}, None),
        (
            "qwen3",
            {
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": None,
                "max_window_layers": 1,
            },
            16,
        ),
        (
            "qwen3",
            {
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            16,
        ),
    ],
)
def test_window_counts_only_where_it_hides_something(
    kind: str, change: dict[str, Any], window: int | None
):
    spec = load_spec({**config_of(kind), **change})
    assert spec.sliding_window == window
    assert spec.full_context == (window or 256)


def test_bad_layer_types_are_refused():
    change = {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"]}
    with pytest.raises(InputRefused, match="layer_types"):
        load_spec({**config_of("qwen2"), **change})


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(KINDS), st.data())
def test_any_junk_in_a_field_is_read_or_refused(kind: str, data: st.DataObject):
    """No field of a config leads to anything but a spec or a typed error."""
    config = config_of(kind)
    key = data.draw(st.sampled_from(sorted(config)))
    try:
        spec = load_spec({**config, key: data.draw(_JUNK)})
    except SparseExportError as error:
        assert error.code in ("config-invalid", "arch-unsupported", "model-quantised")
    else:
        assert spec.head_dim % 2 == 0 and spec.heads % spec.kv_heads == 0
