"""A decoder run block by block in float32: one block's weights in memory, never the model."""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from exporter.model import CheckedModel
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import to_float32
from harness.text import Tokens

BATCH = 4  # windows that run through a block together


class _Recorder(nn.Module):
    """Stands where a block was, keeps what the decoder passes to it, gives its input back."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.arguments = arguments
        return hidden


class BlockStream:
    """The decoder's blocks, and the hidden states of some windows of text before the next one.

    Args:
        model: checked, of a family whose transformers class has `get_decoder().layers`.
        tokens: `[n, length]` int64.
    """

    def __init__(self, model: CheckedModel, tokens: Tokens) -> None:
        self._checkpoint = model.checkpoint
        self._model = _skeleton(model.checkpoint)
        decoder = self._model.get_decoder()
        self.blocks = list(decoder.layers)
        names = {id(module): name for name, module in self._model.named_modules()}
        self._prefix = [names[id(block)] for block in self.blocks]
        self.hidden = _embed(model, tokens)  # float32 [n, length, hidden]
        self._arguments = self._record(decoder)

    def _record(self, decoder: Any) -> list[dict[str, Any]]:
        # The decoder itself says which mask and rotary angles each block gets: families differ.
        recorders = [_Recorder() for _ in self.blocks]
        decoder.layers = nn.ModuleList(recorders)
        decoder.norm = nn.Identity()
        with torch.no_grad():
            decoder(inputs_embeds=self.hidden[:1], use_cache=False)
        return [recorder.arguments for recorder in recorders]

    def load(self, index: int) -> nn.Module:
        """Block `index` with its weights, float32, by the names of the checkpoint."""
        block = self.blocks[index]
        for name, _ in list(block.named_parameters()):
            values = torch.from_numpy(self._checkpoint.rows(f"{self._prefix[index]}.{name}"))
            owner, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
        return block.eval()

    def module(self, index: int, name: str) -> nn.Linear:
        """The linear with the full module name `name` in block `index`."""
        local = name.removeprefix(self._prefix[index] + ".")
        return cast(nn.Linear, self.blocks[index].get_submodule(local))

    def run(self, index: int, *, advance: bool) -> None:
        """Feed all windows to block `index`; with `advance` outputs replace the hidden states."""
        block = self.blocks[index]
        with torch.no_grad():
            for i in range(0, len(self.hidden), BATCH):
                out = block(self.hidden[i : i + BATCH], **self._arguments[index])
                if advance:
                    self.hidden[i : i + BATCH] = out

    def drop(self, index: int) -> None:
        """Free the weights of block `index`."""
        self.blocks[index].to("meta")


def _skeleton(checkpoint: Checkpoint) -> Any:
    """The transformers model with empty parameters and real buffers (rotary frequencies)."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = cast(Any, AutoConfig).from_pretrained(
        os.fspath(checkpoint.root), local_files_only=True, trust_remote_code=False
    )
    with init_empty_weights(include_buffers=False):
        return (
            cast(Any, AutoModelForCausalLM)
            .from_config(config, dtype=torch.float32, trust_remote_code=False)
            .eval()
        )


def _embed(model: CheckedModel, tokens: Tokens) -> torch.Tensor:
    table = model.checkpoint.view(model.spec.embedding)
    unique, place = np.unique(tokens, return_inverse=True)
    return torch.from_numpy(to_float32(table[unique])[place.reshape(tokens.shape)])
