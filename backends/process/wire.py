"""Messages between a session and its process: a JSON header and raw arrays over a pipe.

Frame: magic, uint32 header length, uint64 body length (both little-endian), the header as
JSON, then the arrays one after another, little-endian and C-contiguous, as `header["arrays"]`
lists them. Written by hand because the two ends may have numpy and Python versions that share
no serialiser but pickle, which can run code.

Runs on Python 3.8-3.13 with numpy and nothing else: an engine's environment imports it by path.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

import numpy as np

MAGIC = b"SXW1"
MAX_HEADER = 64 << 20  # a prompt of a million tokens in JSON is 8 MB
MAX_BODY = 64 << 30
_PREFIX = struct.Struct("<4sIQ")
_DTYPES = ("float32", "float64", "int64", "int32")


class WireError(Exception):
    """The other end sent something that is not a message."""


class WireTimeout(Exception):
    """No whole message came before the deadline."""


def send(fd: int, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write one message.

    Raises:
        BrokenPipeError: the other end is gone.
    """
    plain = {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        plain[name] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    listed = [[n, a.dtype.name, list(a.shape)] for n, a in plain.items()]
    text = json.dumps(dict(header, arrays=listed)).encode()
    body = sum(a.nbytes for a in plain.values())
    _write(fd, _PREFIX.pack(MAGIC, len(text), body) + text)
    for array in plain.values():
        if array.nbytes:
            _write(fd, memoryview(array.reshape(-1)).cast("B"))


def receive(fd: int, timeout: float | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read one message: its header without "arrays", and fresh writable arrays.

    Args:
        timeout: seconds for the whole message; None waits for ever.

    Raises:
        EOFError: the other end is gone.
        WireError: not a message.
        WireTimeout: too late.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    magic, header_bytes, body_bytes = _PREFIX.unpack(bytes(_read(fd, _PREFIX.size, deadline)))
    if magic != MAGIC:
        raise WireError(f"a message starts with {magic!r}")
    if header_bytes > MAX_HEADER or body_bytes > MAX_BODY:
        raise WireError(f"a message claims {header_bytes} + {body_bytes} bytes")
    try:
        header = json.loads(bytes(_read(fd, header_bytes, deadline)).decode())
        layout = [(str(n), str(d), tuple(int(x) for x in s)) for n, d, s in header.pop("arrays")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError(f"a message's header is malformed: {error}") from None
    return header, _read_arrays(fd, layout, body_bytes, deadline)


def _read_arrays(
    fd: int, layout: Any, body_bytes: int, deadline: float | None
) -> dict[str, np.ndarray[Any, Any]]:
    sizes = []
    for name, dtype, shape in layout:
        if dtype not in _DTYPES or min(shape, default=0) < 0:
            raise WireError(f"array {name}: {dtype} {shape}")
        count = 1
        for extent in shape:
            count *= extent
        sizes.append(count * np.dtype(dtype).itemsize)
    if sum(sizes) != body_bytes:
        raise WireError(f"arrays of {sum(sizes)} bytes in a body of {body_bytes}")
    arrays = {}
    for index, (name, dtype, shape) in enumerate(layout):
        raw = _read(fd, sizes[index], deadline)
        little = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))
        arrays[name] = little.astype(dtype, copy=False).reshape(shape)
    return arrays


def _read(fd: int, count: int, deadline: float | None) -> bytearray:
    buffer = bytearray(count)
    view = memoryview(buffer)
    done = 0
    while done < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise WireTimeout()
        got = os.readv(fd, [view[done : done + (1 << 20)]])
        if got == 0:
            raise EOFError("the pipe closed")
        done += got
    return buffer


def _write(fd: int, data: Any) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view[: 1 << 20]) :]
