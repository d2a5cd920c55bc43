"""The parts of a decoder layer as ONNX nodes, in the forms that both engines run themselves.

The op patterns matter: DeepSparse 1.8.0 leaves its optimised runtime for Pow, Reciprocal,
Where, Einsum and LayerNormalization, so none of them occurs here.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from backends.decoder_graph.options import HIDDEN, GraphOptions
from backends.decoder_graph.packed import draw_packed
from backends.decoder_graph.pen import Pen
from backends.packed.spec import PackedLinear
from exporter.arch.spec import DecoderSpec


@dataclass(frozen=True)
class Shared:
    """What all layers share: the pen, the facts, and the values made once per run."""

    pen: Pen
    spec: DecoderSpec
    options: GraphOptions
    weights: Set[str]  # initialisers that exist: tells which biases and branches there are
    packed: Mapping[str, PackedLinear]  # modules whose weight is stored as parts
    cos: str = ""  # [batch, 1, tokens, D/2]
    sin: str = ""
    mask: str = ""  # additive, broadcast to the scores


def rms_norm(shared: Shared, x: str, weight: str, name: str) -> str:
    """`x / sqrt(mean(x^2) + eps) * w` over the last axis (Zhang and Sennrich 2019, eq. 4)."""
    pen = shared.pen
    square = pen.draw("Mul", [x, x], f"{name}/square")
    mean = pen.draw("ReduceMean", [square], f"{name}/mean", axes=[-1], keepdims=1)
    shifted = pen.draw("Add", [mean, pen.number(shared.spec.norm_eps)], f"{name}/shifted")
    root = pen.draw("Sqrt", [shifted], f"{name}/root")
    unit = pen.draw("Div", [x, root], f"{name}/unit")
    return pen.draw("Mul", [unit, weight], name)


def linear(shared: Shared, x: str, module: str) -> str:
    """`x W^T (+ b) (+ low-rank branch)`; the initialiser is `W^T`, or there are parts of `W`."""
    pen = shared.pen
    if module in shared.packed:
        y = draw_packed(pen, shared.packed[module], x, module)
    else:
        y = pen.draw("MatMul", [x, f"{module}.weight"], f"{module}/matmul")
    return _with_extras(shared, x, y, module)


def _with_extras(shared: Shared, x: str, y: str, module: str) -> str:
    pen = shared.pen
    if f"{module}.lora_A" in shared.weights:
        low = pen.draw("MatMul", [x, f"{module}.lora_A"], f"{module}/low")
        high = pen.draw("MatMul", [low, f"{module}.lora_B"], f"{module}/high")
        y = pen.draw("Add", [y, high], f"{module}/branched")
    if f"{module}.bias" in shared.weights:
        y = pen.draw("Add", [y, f"{module}.bias"], f"{module}/biased")
    return y


def attention(shared: Shared, x: str, layer: int) -> str:
    """Self-attention over past and new tokens; `[batch, tokens, hidden]` in and out."""
    pen, spec = shared.pen, shared.spec
    name = f"layer.{layer}/attention"
    q = _rotate(shared, _heads(shared, x, layer, "q", spec.heads), f"{name}/q")
    k = _rotate(shared, _heads(shared, x, layer, "k", spec.kv_heads), f"{name}/k")
    v = _heads(shared, x, layer, "v", spec.kv_heads)
    # Scaling q instead of the scores touches D values a row, not one for every position.
    q = pen.draw("Mul", [q, pen.number(spec.head_dim**-0.5)], f"{name}/q/scaled")
    if shared.options.io == "deepsparse":
        k, v = _repeat(shared, k, f"{name}/k"), _repeat(shared, v, f"{name}/v")
    k = pen.draw("Concat", [f"past_key_values.{layer}.key", k], f"present.{layer}.key", axis=2)
    v = pen.draw("Concat", [f"past_key_values.{layer}.value", v], f"present.{layer}.value", axis=2)
    grouped = shared.options.io == "optimum" and spec.heads > spec.kv_heads
    mixed = (_attend_grouped if grouped else _attend)(shared, q, k, v, name)
    rows = pen.draw("Transpose", [mixed], f"{name}/rows", perm=[0, 2, 1, 3])
    flat = pen.integers(0, 0, spec.heads * spec.head_dim)
    joined = pen.draw("Reshape", [rows, flat], f"{name}/joined")
    return linear(shared, joined, spec.name("o", layer))


def _heads(shared: Shared, x: str, layer: int, role: str, heads: int) -> str:
    """Project and split: `[batch, heads, tokens, D]`, with the norm of q and k where there is."""
    pen, spec = shared.pen, shared.spec
    name = f"layer.{layer}/attention/{role}"
    y = linear(shared, x, spec.name(role, layer))
    y = pen.draw("Reshape", [y, pen.integers(0, 0, heads, spec.head_dim)], f"{name}/split")
    if spec.qk_norm and role != "v":
        y = rms_norm(shared, y, spec.name(f"{role}_norm", layer), f"{name}/norm")
    return pen.draw("Transpose", [y], f"{name}/heads", perm=[0, 2, 1, 3])


def _rotate(shared: Shared, x: str, name: str) -> str:
    """Half-rotation form: `(a, b) -> (a cos - b sin, b cos + a sin)` (Su et al. 2021, eq. 34,
    with the pairing of transformers' Llama)."""
    pen, half = shared.pen, shared.spec.head_dim // 2
    a = pen.draw("Split", [x, pen.integers(half, half)], f"{name}/halves", outputs=2, axis=-1)
    b = f"{a}.1"
    first = pen.draw(
        "Sub",
        [
            pen.draw("Mul", [a, shared.cos], f"{name}/a_cos"),
            pen.draw("Mul", [b, shared.sin], f"{name}/b_sin"),
        ],
        f"{name}/first",
    )
    second = pen.draw(
        "Add",
        [
            pen.draw("Mul", [b, shared.cos], f"{name}/b_cos"),
            pen.draw("Mul", [a, shared.sin], f"{name}/a_sin"),
        ],
        f"{name}/second",
    )
    return pen.draw("Concat", [first, second], f"{name}/rotated", axis=-1)


def _repeat(shared: Shared, x: str, name: str) -> str:
    """Each key/value head for every query head of its group, before it enters the cache:
    DeepSparse's internal cache compiles only when nothing but a Transpose stands between the
    Concat with the past and the MatMul."""
    pen, spec = shared.pen, shared.spec
    groups = spec.heads // spec.kv_heads
    if groups == 1:
        return x
    wide = pen.draw("Unsqueeze", [x, pen.integers(2)], f"{name}/wide")
    copies = pen.draw("Expand", [wide, pen.integers(1, 1, groups, 1, 1)], f"{name}/copies")
    shape = pen.integers(0, spec.heads, -1, spec.head_dim)
    return pen.draw("Reshape", [copies, shape], f"{name}/repeated")


def _attend(shared: Shared, q: str, k: str, v: str, name: str) -> str:
    pen = shared.pen
    columns = pen.draw("Transpose", [k], f"{name}/columns", perm=[0, 1, 3, 2])
    scores = pen.draw("MatMul", [q, columns], f"{name}/scores")
    masked = pen.draw("Add", [scores, shared.mask], f"{name}/masked")
    shares = pen.draw("Softmax", [masked], f"{name}/shares", axis=-1)
    return pen.draw("MatMul", [shares, v], f"{name}/mixed")


def _attend_grouped(shared: Shared, q: str, k: str, v: str, name: str) -> str:
    """As `_attend` with a group axis that MatMul broadcasts: the cache is never copied out."""
    pen, spec = shared.pen, shared.spec
    shape = pen.integers(0, spec.kv_heads, spec.heads // spec.kv_heads, -1, spec.head_dim)
    q = pen.draw("Reshape", [q, shape], f"{name}/q/grouped")
    k = pen.draw("Unsqueeze", [k, pen.integers(2)], f"{name}/k/grouped")
    v = pen.draw("Unsqueeze", [v, pen.integers(2)], f"{name}/v/grouped")
    columns = pen.draw("Transpose", [k], f"{name}/columns", perm=[0, 1, 2, 4, 3])
    scores = pen.draw("MatMul", [q, columns], f"{name}/scores")
    masked = pen.draw("Add", [scores, shared.mask], f"{name}/masked")
    shares = pen.draw("Softmax", [masked], f"{name}/shares", axis=-1)
    mixed = pen.draw("MatMul", [shares, v], f"{name}/mixed")
    return pen.draw("Reshape", [mixed, pen.integers(0, spec.heads, -1, spec.head_dim)], f"{name}/h")


def mlp(shared: Shared, x: str, layer: int) -> str:
    """`down(silu(gate(x)) * up(x))`."""
    pen, spec = shared.pen, shared.spec
    name = f"layer.{layer}/mlp"
    gate = linear(shared, x, spec.name("gate", layer))
    sigmoid = pen.draw("Sigmoid", [gate], f"{name}/sigmoid")
    silu = pen.draw("Mul", [gate, sigmoid], f"{name}/silu")
    up = linear(shared, x, spec.name("up", layer))
    return linear(shared, pen.draw("Mul", [silu, up], f"{name}/gated"), spec.name("down", layer))


def decoder_layer(shared: Shared, x: str, layer: int) -> str:
    """One layer on the residual stream; its output is the probe's "layer.{i}"."""
    pen, spec = shared.pen, shared.spec
    name = f"layer.{layer}"
    normed = rms_norm(shared, x, spec.name("input_norm", layer), f"{name}/input_norm")
    x = pen.draw("Add", [x, attention(shared, normed, layer)], f"{name}/after_attention")
    normed = rms_norm(shared, x, spec.name("post_norm", layer), f"{name}/post_norm")
    return pen.draw("Add", [x, mlp(shared, normed, layer)], f"{HIDDEN}layer.{layer}")


def head(shared: Shared, x: str, tied: bool) -> str:
    """Logits. Gemm reads `[vocab, hidden]` as it is, so a tied head is the embedding itself
    and the largest tensor is never transposed. Gemm wants two axes, hence the reshapes."""
    pen, spec = shared.pen, shared.spec
    flat = pen.draw("Reshape", [x, pen.integers(-1, spec.hidden)], "head/flat")
    weight = spec.embedding if tied else spec.head
    y = pen.draw("Gemm", [flat, weight], "head/gemm", transB=1)
    y = _with_extras(shared, flat, y, spec.head.removesuffix(".weight"))
    if shared.options.io == "deepsparse":
        shape = pen.integers(1, -1, spec.vocab)
    else:
        sizes = pen.draw("Shape", ["input_ids"], "head/sizes")
        shape = pen.draw("Concat", [sizes, pen.integers(spec.vocab)], "head/shape", axis=0)
    return pen.draw("Reshape", [y, shape], "logits")
