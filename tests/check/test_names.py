"""Names, shapes, types, ties and vocabulary: each fault with its typed error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exporter.check.model import check_model
from exporter.errors import InputRefused
from tests.check.folder import BF16, EMBEDDING, HEAD, NORM, Q0W, tensors, write_model


def refused(code: str, folder: Any, *args: Any, **kwargs: Any) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        check_model(write_model(folder, *args, **kwargs))
    assert caught.value.code == code
    return caught.value


def test_a_whole_model_passes(tmp_path) -> None:
    checked = check_model(write_model(tmp_path))
    assert len(checked.patterns) == 14
    assert (checked.head_is_tied, checked.dropped, checked.notes) == (False, {}, ())


def test_a_missing_tensor_is_named(tmp_path) -> None:
    arrays = tensors()
    del arrays[NORM]
    assert refused("tensor-missing", tmp_path, arrays).tensor == NORM


def test_many_missing_tensors_are_counted(tmp_path) -> None:
    arrays = {n: a for n, a in tensors().items() if "layers.1" not in n}
    error = refused("tensor-missing", tmp_path, arrays)
    assert error.found.startswith("9 tensors are missing: model.layers.1.")


def test_a_missing_head_explains_the_tie(tmp_path) -> None:
    error = refused("tensor-missing", tmp_path, tensors(tied=True))
    assert error.tensor == HEAD
    assert "tie_word_embeddings to true" in error.hint


def test_an_unknown_tensor_is_refused(tmp_path) -> None:
    extra = "model.layers.2.self_attn.q_proj.weight"
    arrays = tensors() | {extra: np.ones((16, 16), np.float32)}
    error = refused("tensor-unexpected", tmp_path, arrays)
    assert (error.tensor, error.file) == (extra, "model.safetensors")


def test_a_bias_that_the_config_denies_is_refused(tmp_path) -> None:
    arrays = tensors() | {Q0W.replace("weight", "bias"): np.ones(16, np.float32)}
    refused("tensor-unexpected", tmp_path, arrays)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.1.self_attn.masked_bias",
    ],
)
def test_old_buffers_are_dropped_with_a_reason(tmp_path, name) -> None:
    checked = check_model(write_model(tmp_path, tensors() | {name: np.ones(4, np.float32)}))
    assert list(checked.dropped) == [name]
    assert "buffer" in checked.dropped[name]


@pytest.mark.parametrize("shape", [(16, 8), (32, 16), (16,), (), (0, 16), (16, 16, 1), (1, 256)])
def test_a_shape_against_the_config_is_refused(tmp_path, shape) -> None:
    error = refused("tensor-shape", tmp_path, tensors() | {Q0W: np.ones(shape, np.float32)})
    assert (error.tensor, error.found) == (Q0W, f"shape {list(shape)}")
    assert "[16, 16]" in str(error.expected)


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (np.int8, "model-quantised"),
        (np.uint8, "model-quantised"),
        (np.int32, "model-quantised"),
        ("float8_e4m3fn", "model-quantised"),
        (np.int64, "dtype-unsupported"),
        (np.bool_, "dtype-unsupported"),
    ],
)
def test_other_types_are_refused(tmp_path, dtype, code) -> None:
    if dtype == "float8_e4m3fn":
        import ml_dtypes

        dtype = ml_dtypes.float8_e4m3fn
    error = refused(code, tmp_path, tensors() | {Q0W: np.ones((16, 16), dtype)})
    assert error.tensor == Q0W


@pytest.mark.parametrize("suffix", ["qweight", "weight_scale", "weight_packed", "absmax"])
def test_a_quantisers_tensor_is_named_as_such(tmp_path, suffix) -> None:
    arrays = tensors()
    arrays[Q0W.replace("weight", suffix)] = arrays.pop(Q0W)
    refused("model-quantised", tmp_path, arrays)


def test_a_quantised_config_is_refused(tmp_path) -> None:
    refused("model-quantised", tmp_path, None, {"quantization_config": {"quant_method": "gptq"}})


def test_another_stored_type_than_the_configs_is_noted(tmp_path) -> None:
    checkpoint = write_model(tmp_path, tensors(), {"torch_dtype": "bfloat16"})
    notes = check_model(checkpoint).notes
    assert [(n.what, n.count) for n in notes] == [("dtype-not-of-config", 21)]


def test_an_equal_stored_tied_head_is_dropped(tmp_path) -> None:
    arrays = tensors(tied=True)
    arrays[HEAD] = arrays[EMBEDDING].copy()
    checked = check_model(write_model(tmp_path, arrays, tied=True))
    assert checked.head_is_tied
    assert checked.dropped == {HEAD: "the tied head; equal to the embedding"}


def test_a_tied_head_in_a_wider_type_is_compared_by_value(tmp_path) -> None:
    arrays = tensors(tied=True, dtype=BF16)
    arrays[HEAD] = arrays[EMBEDDING].astype(np.float32)
    assert check_model(write_model(tmp_path, arrays, tied=True)).dropped


def test_a_tied_head_that_differs_is_refused(tmp_path) -> None:
    arrays = tensors(tied=True)
    arrays[HEAD] = arrays[EMBEDDING].copy()
    arrays[HEAD][13, 3] += 1e-6
    error = refused("tie-conflict", tmp_path, arrays, tied=True)
    assert (error.tensor, error.found) == (HEAD, "row 13 differs from the embedding's")


def test_a_tied_head_of_another_shape_is_refused(tmp_path) -> None:
    arrays = tensors(tied=True) | {HEAD: np.ones((20, 8), np.float32)}
    assert "shape" in refused("tie-conflict", tmp_path, arrays, tied=True).found


def test_an_untied_head_may_equal_the_embedding(tmp_path) -> None:
    arrays = tensors()
    arrays[HEAD] = arrays[EMBEDDING].copy()
    checked = check_model(write_model(tmp_path, arrays))
    assert (checked.head_is_tied, checked.dropped) == (False, {})


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
@pytest.mark.parametrize("rows", [19, 21])
def test_rows_against_the_configs_vocabulary(tmp_path, name, rows) -> None:
    arrays = tensors() | {name: np.ones((rows, 16), np.float32)}
    error = refused("vocab-mismatch", tmp_path, arrays)
    assert (error.tensor, error.found) == (name, f"{rows} rows")


def bpe(size: int, *added: int) -> dict[str, Any]:
    vocab = {f"t{i}": i for i in range(size)}
    tokens = [{"id": i, "content": f"<{i}>"} for i in added]
    return {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": tokens}


def unigram(size: int) -> dict[str, Any]:
    return {"model": {"type": "Unigram", "vocab": [[f"t{i}", 0.0] for i in range(size)]}}


@pytest.mark.parametrize("tokenizer", [bpe(20), bpe(15), bpe(18, 18, 19), bpe(18, 3), unigram(20)])
def test_a_tokenizer_within_the_embedding_passes(tmp_path, tokenizer) -> None:
    assert check_model(write_model(tmp_path, tokenizer=tokenizer)).patterns


@pytest.mark.parametrize("tokenizer", [bpe(21), bpe(18, 20), unigram(21)])
def test_a_token_without_a_row_is_refused(tmp_path, tokenizer) -> None:
    error = refused("vocab-mismatch", tmp_path, tokenizer=tokenizer)
    assert (error.file, error.found.endswith("has id 20")) == ("tokenizer.json", True)


@pytest.mark.parametrize(
    "tokenizer",
    [
        [],
        {},
        {"model": 3},
        {"model": {"vocab": 7}},
        {"model": {"vocab": {"a": "b"}}},
        {"model": {"vocab": {"a": True}}},
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": {}}, "added_tokens": [5]},
        {"model": {"vocab": {}}, "added_tokens": {"a": 1}},
        {"model": {"vocab": {}}, "added_tokens": [{"content": "x"}]},
    ],
)
def test_a_tokenizer_of_another_form_is_refused(tmp_path, tokenizer) -> None:
    assert refused("json-invalid", tmp_path, tokenizer=tokenizer).file == "tokenizer.json"


@pytest.mark.parametrize("name", ["added_tokens.json", "vocab.json"])
def test_tokens_of_older_layouts_need_rows_too(tmp_path, name) -> None:
    (tmp_path / name).write_text('{"a": 19}')
    assert check_model(write_model(tmp_path)).patterns
    for content, code in (('{"a": 20}', "vocab-mismatch"), ("[]", "json-invalid")):
        (tmp_path / name).write_text(content)
        assert refused(code, tmp_path).file == name
