from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T", bound=type)

QUANTIZATION_METHODS: list[str]

def register_quantization_config(quantization: str) -> Callable[[_T], _T]: ...
