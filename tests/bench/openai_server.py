"""A small OpenAI-compatible server of known speed: streams tokens, can lose or shorten answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Manner:
    """How it answers; `seen` is what it was asked."""

    ttft: float = 0.02
    gap: float = 0.005
    fail_every: int = 0  # each n-th request gets status 500
    seen: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def served(manner: Manner) -> Generator[str]:
    """Its URL while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._json(200, {"data": [{"id": "toy", "root": "toy"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.path.endswith("/v1/completions"):
                self._json(404, {"error": "no such path"})
                return
            manner.seen.append(asked)
            if manner.fail_every and len(manner.seen) % manner.fail_every == 0:
                self._json(500, {"error": "lost"})
                return
            self._stream(int(asked["max_tokens"]))

        def _stream(self, count: int) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            time.sleep(manner.ttft)
            for i in range(count):
                time.sleep(manner.gap if i else 0)
                self._event({"choices": [{"text": " a", "index": 0}]})
            usage = {"prompt_tokens": 4, "completion_tokens": count}
            self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def _event(self, data: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()

        def _json(self, status: int, data: dict[str, Any]) -> None:
            body = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
