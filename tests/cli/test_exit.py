"""What a command line ends with where no typed error of ours was raised."""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest
import typer

from exporter.commands.terminal import interruptible, run_app


def app_that(act) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(act)
    return app


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EACCES, "input-unreadable"), (errno.ENOSPC, "output-failed")],
)
def test_what_the_system_refuses_is_an_error_without_a_trace(number, code, capsys) -> None:
    def act() -> None:
        raise OSError(number, os.strerror(number), "/some/place")

    assert run_app(app_that(act), [], as_json=True) == 3
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert (error["code"], error["file"]) == (code, "/some/place")
    assert os.strerror(number) in said.err and "Traceback" not in said.err


@pytest.mark.parametrize(("leave", "code"), [(None, 0), (0, 0), (7, 7), ("no good", 1)])
def test_exit_codes_are_pythons(leave, code) -> None:
    def act() -> None:
        raise SystemExit(leave)

    assert run_app(app_that(act), []) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_polite_stop_is_130_and_cleans_up(number, capsys) -> None:
    cleaned: list[bool] = []

    def act() -> None:
        with interruptible():
            try:
                signal.raise_signal(number)
            finally:
                cleaned.append(True)

    # The shell that runs the tests may ignore it (nohup, "&"), and what is ignored stays so.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        assert run_app(app_that(act), []) == 130
    finally:
        signal.signal(number, before)
    assert cleaned == [True]
    assert "interrupted" in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_trace() -> None:
    def act() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_app(app_that(act), [])
