"""Hidden states of a model in vLLM, taken by hooks while it runs eagerly.

vLLM's decoder layers add the residual late: a layer gives `(update, residual)`, and what other
implementations call its output is their sum (vllm/model_executor/models/llama.py); GPT-2's gives
that sum itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from backends.process.serve import Unfit


class Recorder:
    """Keeps "embedding" and "layer.0", ... of the next forward, float32 `[T, hidden]`."""

    def __init__(self, model: Any, layers: int) -> None:
        self.states: dict[str, Any] = {}
        self._layers = _find_layers(model, layers)
        self._hooks: list[Any] = []

    def __enter__(self) -> Recorder:
        for index, layer in enumerate(self._layers):
            self._hooks.append(layer.register_forward_hook(self._after(f"layer.{index}")))
        first = self._layers[0]
        self._hooks.append(first.register_forward_pre_hook(self._before, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        floats = [x for x in given if hasattr(x, "is_floating_point") and x.is_floating_point()]
        self.states["embedding"] = floats[0].float().clone()

    def _after(self, key: str) -> Any:
        def keep(_module: object, _inputs: object, output: Any) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            whole: Any = sum(part.float() for part in parts if part is not None)
            self.states[key] = whole.clone()  # layers write into one another's buffers

        return keep


def _find_layers(model: Any, layers: int) -> Any:
    module_list: Any = import_module("torch").nn.ModuleList
    for _, module in model.named_modules():
        if isinstance(module, module_list) and len(module) == layers:
            return module
    raise Unfit("engine-refused", f"{type(model).__name__} shows no list of {layers} layers")
