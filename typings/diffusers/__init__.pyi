# diffusers' annotations say what its code does not do: tuple[int] for tuples of any length, FloatTensor for
# every tensor, a lazy module whose names count as private. So its names count as untyped here.
from typing import Any

def __getattr__(name: str) -> Any: ...
