"""Fused kernels, in Triton: what the plain path does, in fewer passes over memory.

`head/` log-probabilities and their gradients without logits in memory, `layers/` the small operations
between products, `optimiser/` one pass of the optimiser over all state. Each has a `naive.py` that says
the same in a few lines of torch. `resources.py` compiles every kernel without a GPU and says what it takes.
Triton is imported by the modules with kernels only.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available(device: torch.device) -> bool:
    """Whether kernels run on tensors of `device`: Triton is installed, and the device is a CUDA one or
    Triton's interpreter is on (`TRITON_INTERPRET=1`, for tests: it is very slow)."""
    return installed() and (device.type == "cuda" or interpreted())


def installed() -> bool:
    """Whether Triton is there."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
