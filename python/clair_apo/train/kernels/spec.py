"""One compiled form of a kernel, for the table of resources and its tests (`resources.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spec:
    """A kernel with the types of its arguments and the values of its constants, as it is launched.

    `flops` and `bytes` are those of the reference shape, the 8B model: H 4096, V 128,256, N 8192.
    """

    name: str  # "head: log-probabilities"
    kernel: Any  # the triton.JITFunction
    signature: dict[str, str]  # argument -> "*bf16", "*fp32", "i32", "constexpr"
    constants: dict[str, Any]  # values of the constexpr ones
    num_warps: int = 4
    num_stages: int = 3
    products: bool = False  # must use the matrix instructions of its generation (mma, wgmma, tcgen05)
    flops: float = 0.0
    bytes: float = 0.0  # moved at least
