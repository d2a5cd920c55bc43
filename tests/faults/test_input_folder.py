"""Every fault of a model folder, through the command line: code, file, tensor, nothing left.

Lawful oddities stand beside the faults: they must export.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from exporter.limits import LIMITS
from tests.attacks.corpus import LFS, edit_index
from tests.faults.asking import Ask, Edit, change, grow, mend, mend_header, stored

ONE = "model.safetensors"
FIRST, THIRD, LAST = (f"model-0000{i}-of-00004.safetensors" for i in (1, 3, 4))
INDEX = "model.safetensors.index.json"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
NORM, HEAD, EMBEDDING = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"


def cut(share: float, name: str = LAST) -> Edit:
    return lambda r: os.truncate(r / name, int((r / name).stat().st_size * share))


def put(name: str, data: bytes | str) -> Edit:
    return lambda r: (r / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def drop(name: str) -> Edit:
    return lambda r: (r / name).unlink()


def copied(old: str, new: str) -> Edit:
    return lambda r: shutil.copy(r / old, r / new)


def moved(old: str, new: str) -> Edit:
    return lambda r: (r / old).rename(r / new)


def reindexed(**weight_map: Any) -> Edit:
    def edit(index: dict[str, Any]) -> None:
        for tensor, shard in weight_map.items():
            index["weight_map"].pop(tensor, None)
            if shard is not None:
                index["weight_map"][tensor] = shard

    return lambda r: edit_index(r, edit)


def twice(r: Path) -> None:
    """The final norm in the last shard and in the first."""
    holder = json.loads((r / INDEX).read_text())["weight_map"][NORM]
    other = FIRST if holder != FIRST else LAST
    norm = stored(r / holder, NORM)
    change(r / other, lambda t: t.update({NORM: norm}))


def total(value: Any) -> Edit:
    return lambda r: edit_index(r, lambda i: i["metadata"].update(total_size=value))


def doubled_key(name: str, key: str) -> Edit:
    def edit(r: Path) -> None:
        value = json.loads((r / name).read_text())
        text = f"{{{json.dumps(key)}: {json.dumps(value[key])}, {json.dumps(value)[1:]}"
        (r / name).write_text(text)

    return edit


def spliced(name: str, text: str) -> Edit:
    """One more field, written as it stands."""
    return lambda r: (r / name).write_text(f'{{"odd": {text}, ' + (r / name).read_text()[1:])


def reencoded(encoding: str) -> Edit:
    return lambda r: (r / CONFIG).write_bytes((r / CONFIG).read_text().encode(encoding))


def huge(name: str) -> Edit:
    """Just over the limit, as a hole: no byte of it is read."""
    return lambda r: os.truncate(r / name, LIMITS.json_bytes + 1)


def added_token(number: int) -> Edit:
    def edit(r: Path) -> None:
        value = json.loads((r / TOKENIZER).read_text())
        token = {"id": number, "content": "<new>", "special": True, "normalized": False}
        value["added_tokens"].append({**token, "lstrip": False, "rstrip": False, "single_word": 0})
        value["added_tokens"][-1]["single_word"] = False
        (r / TOKENIZER).write_text(json.dumps(value))

    return edit


def longer_vocabulary(r: Path) -> None:
    value = json.loads((r / TOKENIZER).read_text())
    value["model"]["vocab"] |= {f"t{i}": i for i in range(259, 273)}
    (r / TOKENIZER).write_text(json.dumps(value))


# name -> (what is broken, code, file, tensor)
SHARDED: dict[str, tuple[Edit, str, str | None, str | None]] = {
    "last shard short by a byte": (lambda r: grow(r / LAST, -1), "file-truncated", LAST, NORM),
    "last shard cut to half": (cut(0.5), "file-truncated", LAST, HEAD),
    "last shard empty": (cut(0.0), "file-truncated", LAST, None),
    "zeros past the end": (lambda r: grow(r / LAST, 4096), "header-range", LAST, None),
    "shard missing": (drop(LAST), "shard-missing", LAST, None),
    "stale shard": (
        copied(LAST, "model-00005-of-00005.safetensors"),
        "shard-stale",
        "model-00005-of-00005.safetensors",
        None,
    ),
    "index names a tensor that the shard lacks": (
        reindexed(ghost=LAST),
        "index-mismatch",
        INDEX,
        "ghost",
    ),
    "shard has a tensor that the index lacks": (
        reindexed(**{NORM: None}),
        "index-mismatch",
        INDEX,
        NORM,
    ),
    "tensor in two shards": (twice, "tensor-duplicate", None, NORM),
    "total_size wrong": (total(1), "index-mismatch", INDEX, None),
    "index with a doubled key": (doubled_key(INDEX, "weight_map"), "json-invalid", INDEX, None),
    "index over the limit": (huge(INDEX), "limit-exceeded", INDEX, None),
    "index is a git-LFS pointer": (put(INDEX, LFS), "lfs-pointer", INDEX, None),
    "single file beside shards": (copied(LAST, ONE), "ambiguous-weights", ONE, None),
    "consolidated beside shards": (
        copied(LAST, "consolidated.safetensors"),
        "ambiguous-weights",
        "consolidated.safetensors",
        None,
    ),
    "shard is a git-LFS pointer": (put(LAST, LFS), "lfs-pointer", LAST, None),
    "unfinished download": (
        moved(LAST, LAST + ".incomplete"),
        "incomplete-download",
        LAST + ".incomplete",
        None,
    ),
}

SINGLE: dict[str, tuple[Edit, str, str | None, str | None]] = {
    "config with a doubled key": (
        doubled_key(CONFIG, "hidden_size"),
        "json-invalid",
        CONFIG,
        None,
    ),
    "config with a byte order mark": (reencoded("utf-8-sig"), "json-invalid", CONFIG, None),
    "config in UTF-16": (reencoded("utf-16"), "json-invalid", CONFIG, None),
    "config in UTF-16 without a mark": (reencoded("utf-16-le"), "json-invalid", CONFIG, None),
    "NaN in config": (spliced(CONFIG, "NaN"), "json-invalid", CONFIG, None),
    "1e999 in config": (spliced(CONFIG, "1e999"), "json-invalid", CONFIG, None),
    "deep config": (spliced(CONFIG, "[" * 99 + "]" * 99), "limit-exceeded", CONFIG, None),
    "very deep config": (put(CONFIG, "[" * 200_000), "limit-exceeded", CONFIG, None),
    "config absent": (drop(CONFIG), "input-missing", CONFIG, None),
    "config a list": (put(CONFIG, "[]"), "config-invalid", CONFIG, None),
    "config a number": (put(CONFIG, "3"), "config-invalid", CONFIG, None),
    "model_type and architectures absent": (
        lambda r: mend(r / CONFIG, model_type=..., architectures=...),
        "arch-unsupported",
        CONFIG,
        None,
    ),
    "another head on the body": (
        lambda r: mend(r / CONFIG, architectures=["LlamaForSequenceClassification"]),
        "arch-unsupported",
        CONFIG,
        None,
    ),
    "weights in pickle only": (
        moved(ONE, "pytorch_model.bin"),
        "pickle-refused",
        "pytorch_model.bin",
        None,
    ),
    "weights are a git-LFS pointer": (put(ONE, LFS), "lfs-pointer", ONE, None),
    "tokenizer is a git-LFS pointer": (put(TOKENIZER, LFS), "lfs-pointer", TOKENIZER, None),
    "consolidated beside a single file": (
        copied(ONE, "consolidated.safetensors"),
        "ambiguous-weights",
        "consolidated.safetensors",
        None,
    ),
    "generation_config a list": (
        put("generation_config.json", "[]"),
        "json-invalid",
        "generation_config.json",
        None,
    ),
    "generation_config broken": (
        put("generation_config.json", '{"eos_token_id": }'),
        "json-invalid",
        "generation_config.json",
        None,
    ),
    "tokenizer vocabulary beyond the rows": (
        longer_vocabulary,
        "vocab-mismatch",
        TOKENIZER,
        EMBEDDING,
    ),
    "added token beyond the rows": (added_token(272), "vocab-mismatch", TOKENIZER, EMBEDDING),
    "added token beyond the rows, older layout": (
        put("added_tokens.json", '{"[PAD]": 272}'),
        "vocab-mismatch",
        "added_tokens.json",
        EMBEDDING,
    ),
    "vocabulary of config differs": (
        lambda r: mend(r / CONFIG, vocab_size=280),
        "vocab-mismatch",
        ONE,
        EMBEDDING,
    ),
    "metadata of numbers": (
        lambda r: mend_header(r / ONE, lambda h: h.update(__metadata__={"a": 1})),
        "header-invalid",
        ONE,
        None,
    ),
    "head missing": (lambda r: change(r / ONE, lambda t: t.pop(HEAD)), "tensor-missing", ONE, HEAD),
}

# name -> what is odd, yet lawful
ODD: dict[str, Edit] = {
    "pickle beside safetensors": put("pytorch_model.bin", b"\x80\x04N."),
    "architectures absent": lambda r: mend(r / CONFIG, architectures=...),
    "metadata null": lambda r: mend_header(r / ONE, lambda h: h.update(__metadata__=None)),
    "metadata absent": lambda r: mend_header(r / ONE, lambda h: h.pop("__metadata__", None)),
    "added token within the rows": added_token(260),
    "added tokens, older layout": put("added_tokens.json", '{"<new>": 260}'),
    "no tokenizer at all": lambda r: [drop(n)(r) for n in (TOKENIZER, "tokenizer_config.json")],
    "no generation_config": drop("generation_config.json"),
    "license, picture and code beside it": lambda r: [
        put(n, b"x")(r) for n in ("LICENSE", "plot.png", "modeling_x.py")
    ],
}
ODD_SHARDED: dict[str, Edit] = {
    "total_size of an older writer": total(517376.0),
    "no total_size": lambda r: edit_index(r, lambda i: i.pop("metadata")),
    "pickle shards beside": put("pytorch_model-00001-of-00002.bin", b"x"),
}


def check(ask: Ask, model: Path, code: str, file: str | None, tensor: str | None) -> None:
    error = ask.refused(model)
    assert error["code"] == code, error
    assert error["tensor"] == tensor, error
    if file is None:
        assert error["file"], error
    else:
        assert error["file"] == file, error


@pytest.mark.parametrize("name", SHARDED)
def test_faults_of_a_sharded_folder(name: str, sharded: Path, ask: Ask) -> None:
    edit, *expected = SHARDED[name]
    check(ask, ask.copy(sharded, edit), *expected)


@pytest.mark.parametrize("name", SINGLE)
def test_faults_of_a_single_file(name: str, single: Path, ask: Ask) -> None:
    edit, *expected = SINGLE[name]
    check(ask, ask.copy(single, edit), *expected)


@pytest.mark.parametrize("name", ODD)
def test_lawful_oddities_export(name: str, single: Path, ask: Ask) -> None:
    ask.lowered(ask.copy(single, ODD[name]))


@pytest.mark.parametrize("name", ODD_SHARDED)
def test_lawful_oddities_of_shards_export(name: str, sharded: Path, ask: Ask) -> None:
    ask.lowered(ask.copy(sharded, ODD_SHARDED[name]))


def test_another_type_in_config_than_stored_is_told(single: Path, ask: Ask) -> None:
    """The stored type counts; the user hears of it."""
    model = ask.copy(single, lambda r: mend(r / CONFIG, dtype="bfloat16"))
    report = ask.published(model)
    (note,) = report["model"]["notes"]
    assert (note["what"], note["count"]) == ("dtype-not-of-config", 21)


def hole(name: str) -> Edit:
    """Right header, right size, but the bytes never arrived: all read as zeros."""

    def edit(r: Path) -> None:
        size = (r / name).stat().st_size
        os.truncate(r / name, 8 + int.from_bytes((r / name).read_bytes()[:8], "little"))
        os.truncate(r / name, size)

    return edit


def test_a_shard_of_zeros_is_told(sharded: Path, ask: Ask) -> None:
    """Zeros are lawful values: the report names every tensor that has no other."""
    report = ask.published(ask.copy(sharded, hole(THIRD)))
    held = json.loads((sharded / INDEX).read_text())["weight_map"]
    zeros = {n["tensor"] for n in report["model"]["notes"] if n["what"] == "all-zero"}
    assert zeros == {tensor for tensor, shard in held.items() if shard == THIRD}


def test_a_model_that_computes_nothing_is_not_published(sharded: Path, ask: Ask) -> None:
    """The last shard holds the final norm: without it every token gets the same logits."""
    error = ask.refused(ask.copy(sharded, hole(LAST)), exit_code=1)
    assert error["code"] == "verify-numbers"


def test_a_chat_template_of_its_own_is_carried_byte_for_byte(single: Path, ask: Ask) -> None:
    template = "{% for m in messages %}\r\n{{ m['content'] }} \u00e9\t{% endfor %}\n\n".encode()

    def edit(r: Path) -> None:
        put("chat_template.jinja", template)(r)
        put("chat_template.json", b'{"chat_template" :  "{{ x }}"}')(r)

    model = ask.copy(single, edit)
    report = ask.published(model)
    for name in ("chat_template.jinja", "chat_template.json", TOKENIZER, "tokenizer_config.json"):
        assert (ask.out / name).read_bytes() == (model / name).read_bytes()
        assert name in report["artefact"]["files"]


def test_pickles_and_code_are_never_copied(single: Path, ask: Ask) -> None:
    def edit(r: Path) -> None:
        put("pytorch_model.bin", b"\x80\x04N.")(r)
        put("modeling_x.py", b"raise SystemExit(9)")(r)

    ask.published(ask.copy(single, edit))
    assert not {p.suffix for p in ask.out.rglob("*")} & {".bin", ".py"}
