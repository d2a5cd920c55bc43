"""fake_vllm.py serve FOLDER --port N: stands for `vllm` in the tests of what starts and ends it.

FOLDER is a mode: "good", "slow" (healthy at the third question), "dies", "deaf" (ignores SIGTERM).
It writes its own process id and that of a child, as vLLM has one, to FAKE_VLLM_PIDS.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

_, serve, mode, flag, port = sys.argv
assert (serve, flag) == ("serve", "--port"), sys.argv  # and no other flag


class Handler(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        Handler.asked += 1
        healthy = mode != "slow" or Handler.asked > 2
        self.send_response(200 if healthy and self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, flush=True)


print("loading weights", flush=True)
if mode == "dies":
    print("ValueError: no such layout", flush=True)
    sys.exit(3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(os.environ["FAKE_VLLM_PIDS"], "w") as pids:
    pids.write(f"{os.getpid()} {child.pid} {os.environ['VLLM_CPU_KVCACHE_SPACE']}")
HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
