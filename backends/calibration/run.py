"""The calibrator: inputs of linears and next-token loss, in one pass over the blocks."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from backends.calibration.blocks import BlockStream
from backends.calibration.grams import InputGrams
from backends.calibration.tokens import tokenise
from exporter.contract import KeepGram, Progress, Tokens
from exporter.model import FusedModel


class TorchCalibrator:
    """A `contract.Calibrator`: transformers' classes in float32 on the CPU."""

    def tokenise(self, folder: Path, text: str) -> Tokens:
        """See `backends.calibration.tokens.tokenise`."""
        return tokenise(folder, text)

    def observe(
        self,
        model: FusedModel,
        windows: Tokens,
        held_out: int,
        gram_of: Collection[str],
        keep: KeepGram,
        progress: Progress | None = None,
    ) -> float:
        """Run the blocks once; see `contract.Calibrator.observe`."""
        stream = BlockStream(model, windows)
        count, layers = len(windows), len(stream.blocks)
        watched = count - held_out
        for index in range(layers):
            stream.load(index)
            prefix = stream.prefix(index)
            grams = InputGrams({n: stream.module(n) for n in gram_of if n.startswith(prefix)})
            with grams.watching():
                stream.run(index, 0, watched, advance=True)
            stream.run(index, watched, count, advance=True)
            for modules, gram in grams.results():
                keep(modules, gram.numpy())
            stream.drop(index)
            if progress is not None:
                progress("run the blocks", index + 1, layers)
        return stream.loss(watched, count)
