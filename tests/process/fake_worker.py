"""fake_worker.py FAULT [TAG]: serves a toy session and misbehaves at token 9 or at the start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

for _name in ("backends", "backends.process"):
    sys.modules[_name] = types.ModuleType(_name)
    _folder = Path(__file__).resolve().parents[2].joinpath(*_name.split("."))
    sys.modules[_name].__path__ = [str(_folder)]

import numpy as np  # noqa: E402

from backends.process import serve  # noqa: E402

VOCAB = 11


class Toy:
    """Logits of a token are one at (sum of all tokens so far) mod VOCAB."""

    max_tokens = 32

    def __init__(self, fault):
        self.fault, self.held = fault, []

    def prefill(self, tokens, *, logits):
        if len(tokens) > self.max_tokens:
            raise serve.Unfit("engine-refused", f"{len(tokens)} tokens of {self.max_tokens}")
        self.held = []
        rows = np.stack([self.decode(t) for t in tokens])
        return rows[-1:] if logits == "last" else rows

    def decode(self, token):
        self.held.append(token)
        if token == 9:
            misbehave(self.fault)
        row = np.zeros(VOCAB, np.float32)
        row[sum(self.held) % VOCAB] = 1
        return row

    def generate(self, tokens, n):
        return serve.greedy(self, tokens, n)

    def facts(self):
        return {
            "engine": "toy",
            "version": sys.version.split()[0],
            "threads": 1,
            "ops_share": 1.0,
            "weight_bytes": 0,
            "extra": {"threads": "one"},
        }

    def close(self):
        if self.fault == "linger":
            time.sleep(600)


def misbehave(fault):
    print("last words of", fault, flush=True)
    if fault == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    if fault == "exit":
        os._exit(7)
    if fault == "hang":
        subprocess.Popen(["sleep", f"601.{sys.argv[2]}"])
        time.sleep(600)
    if fault == "stuck":
        time.sleep(600)
    if fault == "raise":
        raise ValueError("not a number I like")
    if fault == "garbage":
        os.write(int(WIRE[1]), b"Segmentation fault or so, on the wrong file descriptor")
        time.sleep(600)
    if fault == "close":
        os.close(int(WIRE[1]))
        time.sleep(600)


def build(fault):
    print("toy banner", flush=True)
    if fault == "clash":
        raise serve.Unfit("engine-unfit", "numpy 2.4.0 in the engine's environment")
    if fault == "bad-code":
        raise serve.Unfit("no-such-code", "whatever")
    if fault.startswith("start-"):
        misbehave(fault[len("start-") :])
    if fault == "big":
        np.ones(200 << 17).sum()
    return Toy(fault)


if __name__ == "__main__":
    WIRE = os.environ[serve.WIRE_VARIABLE].split(",")
    sys.exit(serve.serve(lambda: build(sys.argv[1])))
