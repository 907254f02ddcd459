"""The gate of an MLP, `activation(gate) * up`, in one pass, and both gradients in one more.

Each program takes `BLOCK` numbers. The activation is rounded to the dtype of the rows before it meets `up`,
as the modules do, and is kept in registers only: the way back makes it again from `gate`.

Both activations are z -> z * sigmoid(a(z)): a(z) = z for SiLU, and for GELU in its tanh form, since
(1 + tanh u) / 2 = sigmoid(2u), a(z) = 2 sqrt(2/pi) (z + 0.044715 z^3).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clair_apo.train.kernels.layers.naive import ACTIVATIONS
from clair_apo.train.kernels.layers.remake import remakeable
from clair_apo.train.kernels.spec import Spec

_BLOCK = 1024
_TWICE_ROOT = tl.constexpr(2 * (2 / 3.141592653589793) ** 0.5)
_CUBIC = tl.constexpr(0.044715)


def gated(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """As `naive.gated`: `gate` and `up` of one shape and dtype; so is the result.

    Raises: ValueError for other shapes, or an activation that is none of `ACTIVATIONS`.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"a gate {gate.dtype} {tuple(gate.shape)} for {up.dtype} {tuple(up.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{activation} is none of {', '.join(ACTIVATIONS)}")
    return remakeable(_Gated.apply(gate, up, activation == "silu"), _again)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, silu: bool) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.silu = silu
        return _product(gate, up, silu)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        of_out = grads[0].contiguous()
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        if count := gate.numel():
            _backward[(triton.cdiv(count, _BLOCK),)](
                of_out, gate, up, of_gate, of_up, count, ctx.silu, _BLOCK
            )
        return of_gate, of_up, None


def _product(gate: Tensor, up: Tensor, silu: bool) -> Tensor:
    out = torch.empty_like(gate)
    if count := gate.numel():
        _forward[(triton.cdiv(count, _BLOCK),)](gate, up, out, count, silu, _BLOCK)
    return out


def _again(ctx: Any) -> Tensor:
    gate, up = ctx.saved_tensors
    return _product(gate, up, ctx.silu)


@triton.jit
def _sigmoid_of(gate, SILU: tl.constexpr):
    """sigmoid(a(gate)), and the slope of a."""
    if SILU:
        return tl.sigmoid(gate), tl.full(gate.shape, 1.0, tl.float32)
    square = gate * gate
    inner = _TWICE_ROOT * gate * (1.0 + _CUBIC * square)
    return tl.sigmoid(inner), _TWICE_ROOT * (1.0 + 3.0 * _CUBIC * square)


@triton.jit
def _forward(gate_pointer, up_pointer, out_pointer, count, SILU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(gate_pointer + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_pointer + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid, _ = _sigmoid_of(gate, SILU)
    dtype = out_pointer.dtype.element_ty
    active = (gate * sigmoid).to(dtype).to(tl.float32)
    tl.store(out_pointer + at, (active * up).to(dtype), mask=inside)


@triton.jit
def _backward(
    of_out_pointer,
    gate_pointer,
    up_pointer,
    of_gate_pointer,
    of_up_pointer,
    count,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    of_out = tl.load(of_out_pointer + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_pointer + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_pointer + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid, slope = _sigmoid_of(gate, SILU)
    active = gate * sigmoid
    of_gate = of_out * up * (sigmoid + active * (1.0 - sigmoid) * slope)
    tl.store(of_gate_pointer + at, of_gate.to(of_gate_pointer.dtype.element_ty), mask=inside)
    tl.store(of_up_pointer + at, (of_out * active).to(of_up_pointer.dtype.element_ty), mask=inside)


# The reference shape: 8192 rows of 14,336 numbers in bfloat16.
_REFERENCE = 8192 * 14336 * 2
_CONSTANTS = dict.fromkeys(("SILU", "BLOCK"), "constexpr")
SPECS = tuple(
    spec
    for name, silu in (("SwiGLU", True), ("GEGLU", False))
    for spec in (
        Spec(
            f"layers: {name}",
            _forward,
            {
                **dict.fromkeys(("gate_pointer", "up_pointer", "out_pointer"), "*bf16"),
                "count": "i32",
                **_CONSTANTS,
            },
            {"SILU": silu, "BLOCK": _BLOCK},
            bytes=3 * _REFERENCE,
        ),
        Spec(
            f"layers: {name}, gradients",
            _backward,
            {
                **dict.fromkeys(("of_out_pointer", "gate_pointer", "up_pointer"), "*bf16"),
                **dict.fromkeys(("of_gate_pointer", "of_up_pointer"), "*bf16"),
                "count": "i32",
                **_CONSTANTS,
            },
            {"SILU": silu, "BLOCK": _BLOCK},
            bytes=5 * _REFERENCE,
        ),
    )
)
