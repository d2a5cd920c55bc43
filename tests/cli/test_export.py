"""The command line from end to end, in this process: exit codes, output, what is published."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from exporter.cli import run


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def json_of(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_export_needs_no_verb_and_publishes_what_verify_proves_again(
    sparse_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run([str(sparse_model), "--target", "onnxruntime", "-o", str(out), "--json"]) == 0
    answer = json_of(capsys)
    report = answer["report"]
    assert report["verification"]["verdict"] == {"passed": True, "code": None, "failures": []}
    assert report["model"]["linears"] == 14
    assert report["artefact"]["sparsity_after"] == pytest.approx(report["model"]["sparsity"])
    assert answer["measured"]["peak_rss_bytes"] > 0
    assert report == json.loads((out / ".sparse-export" / "report.json").read_text())
    assert {"model.onnx", "model.data", "config.json", "tokenizer.json"} <= set(files(out))
    assert run(["verify", str(out)]) == 0


def test_options_may_come_first(sparse_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["--target", "onnxruntime", str(sparse_model), "-o", str(out), "--plan"]) == 0
    assert not out.exists()


def test_two_exports_in_different_folders_give_equal_bytes(
    sparse_model: Path, plain_lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, adapter = tmp_path / "another place" / "another name", tmp_path / "another adapter"
    shutil.copytree(sparse_model, copy)
    shutil.copytree(plain_lora, adapter)
    outs = [tmp_path / "a" / "x", tmp_path / "b" / "y"]
    runs = ((sparse_model, plain_lora, False), (copy, adapter, True))
    for (model, lora, renamed), out in zip(runs, outs, strict=True):
        more = ["--adapter", str(lora), "--on-merge", "mask"]
        assert run([str(model), "--target", "onnxruntime", "-o", str(out), *more]) == 0
        # That the base bears another name than the adapter records is told, not written.
        assert ("check the base" in " ".join(capsys.readouterr().out.split())) is renamed
    first, second = map(files, outs)
    assert first.keys() == second.keys()
    differing = [name for name in first if first[name] != second[name]]
    assert differing == []


def test_the_artefact_says_nothing_of_this_machine(sparse_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run([str(sparse_model), "--target", "onnxruntime", "-o", str(out)]) == 0
    words = [str(tmp_path), str(Path.home()) + "/", str(sparse_model)]
    # A short name, "vm" or "root", stands in random bytes by chance.
    words += [w for w in (socket.gethostname(), getpass.getuser()) if len(w) > 5]
    for name, content in files(out).items():
        for word in words:
            assert word.encode() not in content, f"{word} in {name}"


def test_a_dense_delta_on_a_sparse_base_is_refused_with_its_table(
    sparse_model: Path, plain_lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [str(sparse_model), "--target", "onnxruntime", "-o", str(out)]
    assert run([*command, "--adapter", str(plain_lora)]) == 2
    said = capsys.readouterr().err
    assert "merge-policy-needed" in said
    assert "q_proj" in said and "down_proj" in said
    for policy in ("mask", "separate", "densify"):
        assert policy in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", ["mask", "separate", "densify"])
def test_each_policy_publishes_a_verified_artefact(
    sparse_model: Path,
    plain_lora: Path,
    tmp_path: Path,
    policy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = [str(sparse_model), "--target", "onnxruntime", "-o", str(out), "--json"]
    assert run([*command, "--adapter", f"{plain_lora}=0.5", "--on-merge", policy]) == 0
    report = json_of(capsys)["report"]
    assert report["adapters"][0]["weight"] == 0.5
    assert report["merge"]["policy"] == policy
    before, after = report["model"]["sparsity"], report["artefact"]["sparsity_after"]
    assert (after < before - 0.05) if policy == "densify" else after == pytest.approx(before)
    assert run(["verify", str(out)]) == 0


def test_an_existing_output_stays_without_force_and_is_replaced_with_it(
    sparse_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [str(sparse_model), "--target", "onnxruntime", "-o", str(out)]
    assert run(command) == 0
    before = files(out)
    assert run(command) == 2
    assert files(out) == before
    shortened = ["--target", "onnxruntime,sequence_length=128", "-o", str(out), "--force"]
    assert run([str(sparse_model), *shortened]) == 0
    assert files(out).keys() == before.keys()
    assert files(out)["model.onnx"] != before["model.onnx"]


def test_force_never_removes_a_folder_that_is_no_output(sparse_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert run([str(sparse_model), "--target", "onnxruntime", "-o", str(out), "--force"]) == 2
    assert files(out) == {"mine.txt": b"keep"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--target", "no-such-engine"], 2),
        (["--target", "onnxruntime,no_such_option=1"], 2),
        (["--target", "onnxruntime,sequence_length=many"], 2),
        (["--target", "onnxruntime", "--on-merge", "no-such-policy"], 2),
        (["--target", "onnxruntime", "--dtype", "float64"], 2),
        (["--target", "onnxruntime", "--no-such-flag"], 2),
        ([], 2),
        (["--target", "onnxruntime", "--adapter", "no/such/folder"], 3),
        (["--target", "onnxruntime", "--masks", "no-such-file"], 3),
    ],
)
def test_faults_of_the_command_line(
    sparse_model: Path, tmp_path: Path, arguments: list[str], code: int
) -> None:
    assert run([str(sparse_model), *arguments, "-o", str(tmp_path / "out")]) == code
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_is_refused_as_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(tmp_path / "none"), "--target", "onnxruntime", "--json"]) == 3
    error = json_of(capsys)["error"]
    assert error["code"] == "input-missing"
    assert error["exit_code"] == 3
    assert error["hint"]


def test_a_flipped_bit_is_found_later(sparse_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run([str(sparse_model), "--target", "onnxruntime", "-o", str(out)]) == 0
    data = out / "model.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert run(["verify", str(out)]) == 1


def test_lower_only_publishes_nothing(sparse_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run([str(sparse_model), "--target", "onnxruntime", "-o", str(out), "--lower-only"]) == 0
    assert list(tmp_path.iterdir()) == []
