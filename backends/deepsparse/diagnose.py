"""What DeepSparse users must know about a model before it is written."""

from __future__ import annotations

from collections.abc import Iterator

from backends.base import Diagnostic
from backends.cpu import isa
from backends.decoder_graph.narrow import decoder_spec, no_graph
from backends.deepsparse.runtime import LICENCE
from backends.deepsparse.settings import GRANULE, Settings, longest
from backends.deepsparse.tokenizer import complaints
from exporter.arch.spec import DecoderSpec
from exporter.model import FusedModel

TESTED_BYTES = 4_500_000_000  # a 1.1 B model of 4.4 GB was exported, verified and timed
# Measured over all widths from 17 to 129 and some larger: from 0.41 zeros on, silently wrong.
SPARSE_GRANULE = 16
SPARSE_FROM = 0.3
# Chains of 6 MatMuls 2048x5632, 70 % zeros against dense; docs/reference/deepsparse.md.
_SPEED = {
    "avx2": Diagnostic(
        "warning",
        "this CPU has AVX2 only: measured on such a CPU (Zen 3), DeepSparse "
        "gains nothing from sparsity at decode "
        "(70 % zeros: 0.85-0.93 of dense speed) and loses at prompt chunks of 4 to 32 tokens "
        "(0.25-0.65); chunks of 64 and more gain (1.4-1.6). Decode gains need AVX-512",
    ),
    "none": Diagnostic("warning", "this CPU has no AVX2: DeepSparse cannot run here"),
}
_AVX512 = Diagnostic(
    "note",
    "AVX-512: DeepSparse's decode gain was measured at 1.3-1.7 times dense, nearly all of it "
    "reached at 50 % zeros",
)


def diagnose(model: FusedModel, settings: Settings, data_bytes: int) -> Iterator[Diagnostic]:
    """Notes and warnings for a model that can be lowered."""
    yield Diagnostic("note", f"DeepSparse: {LICENCE}")
    yield _SPEED.get(isa(), _AVX512)
    yield from _lengths(decoder_spec(model.spec), settings)
    if not settings.internal_kv_cache:
        yield Diagnostic(
            "warning",
            f"the key/value cache stays outside the engine (heads of {model.spec.head_dim}): "
            "slower, and DeepSparse's pipeline needs internal_kv_cache=False",
        )
    if data_bytes > TESTED_BYTES:
        size = f"{data_bytes / 1e9:.1f} GB"
        yield Diagnostic("warning", f"{size} of weights: above 4.5 GB DeepSparse is untested here")
    for sidecar in model.checked.checkpoint.sidecars:
        if sidecar.name == "tokenizer.json":
            for text in complaints(sidecar.path):
                yield Diagnostic(
                    "warning", f"tokenise outside DeepSparse's pipeline: {text}", sidecar.name
                )


def refusals(model: FusedModel) -> Iterator[Diagnostic]:
    """Why DeepSparse would not compute this model, or not rightly."""
    refused = no_graph(model.spec)
    if refused:
        yield from refused
        return
    spec = decoder_spec(model.spec)
    if not longest(spec):
        yield Diagnostic(
            "refusal",
            f"the model attends over {spec.full_context} tokens; DeepSparse's cache works in "
            f"multiples of {GRANULE}",
        )
    for module, pattern in model.checked.patterns.items():
        if pattern.in_features % SPARSE_GRANULE and pattern.sparsity >= SPARSE_FROM:
            yield Diagnostic(
                "refusal",
                f"{pattern.in_features} inputs and {pattern.sparsity:.0%} zeros: DeepSparse's "
                f"sparse kernels answer wrongly where the inputs are no multiple of "
                f"{SPARSE_GRANULE}",
                module,
            )


def _lengths(spec: DecoderSpec, settings: Settings) -> Iterator[Diagnostic]:
    if settings.sequence_length < spec.max_positions:
        yield Diagnostic(
            "note",
            f"prompt and answer together have up to {settings.max_tokens} of the model's "
            f"{spec.max_positions} positions; --target deepsparse,sequence_length=N sets another",
        )
    if spec.sliding_window is not None and spec.sliding_window < spec.max_positions:
        yield Diagnostic(
            "note",
            f"the model's sliding window of {spec.sliding_window} is not built into the graph, "
            "so longer sequences are refused",
        )
