"""One frozen set of bounds on untrusted input; each has a test that crosses it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds, in bytes or counts, checked before anything is allocated."""

    header_bytes: int = 100_000_000  # the cap of the safetensors library itself
    json_bytes: int = 64_000_000  # config, index, adapter config, manifest
    json_depth: int = 64
    tensors: int = 1_000_000  # over all shards
    shards: int = 10_000
    rank: int = 8  # dimensions of one tensor
    name_chars: int = 512
    sidecar_bytes: int = 512_000_000  # one tokenizer file
    vocab: int = 4_000_000
    layers: int = 4_096
    dim: int = 1 << 24
    lora_rank: int = 1 << 16


LIMITS = Limits()
