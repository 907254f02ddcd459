"""RMSNorm, rotary positions and gates in PyTorch alone, for where there are no kernels: a CPU above all.

The numbers are those of `naive.py`. What differs is what is kept for the way back: inputs only, where the
modules keep a tensor for each of their steps, and fewer passes over memory. Statistics are in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clair_apo.train.kernels.layers.naive import LLAMA, NormForm
from clair_apo.train.kernels.layers.remake import remakeable


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, form: NormForm = LLAMA) -> Tensor:
    """As `naive.rms_norm`: `x` [..., W], `weight` [W]."""
    return remakeable(_RmsNorm.apply(x, weight, epsilon, form), _norm_again)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, form: NormForm) -> Tensor:
        wide = x.float()
        scale: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.form = form
        return _scaled(wide, weight, scale, form, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        dy = grads[0].float()
        normal = x.float() * scale
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (dy * normal).flatten(0, -2).sum(0).to(weight.dtype)
        dy = dy * (weight.float() + ctx.form.offset)
        mean = torch.linalg.vecdot(dy, normal).div_(x.shape[-1]).unsqueeze(-1)
        dx = dy.addcmul_(normal, mean, value=-1).mul_(scale)
        return dx.to(x.dtype), of_weight, None, None


def _scaled(wide: Tensor, weight: Tensor, scale: Tensor, form: NormForm, dtype: torch.dtype) -> Tensor:
    normal = wide * scale
    if form.rounds_first:
        normal = normal.to(dtype)
        factor = weight + form.offset if form.offset else weight
        return normal.mul_(factor) if normal.dtype == factor.dtype else normal * factor
    return normal.mul_(weight.float() + form.offset).to(dtype)


def _norm_again(ctx: Any) -> Tensor:
    x, weight, scale = ctx.saved_tensors
    return _scaled(x.float(), weight, scale, ctx.form, x.dtype)


def gated(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """As `naive.gated`: `gate` and `up` of one shape and dtype."""
    return remakeable(_Gated.apply(gate, up, activation), _gated_again)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _product(gate, up, activation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        dy = grads[0]
        of_active = dy * up
        if ctx.activation == "silu":
            of_gate = torch.ops.aten.silu_backward(of_active, gate)
        else:
            of_gate = torch.ops.aten.gelu_backward(of_active, gate, approximate="tanh")
        return of_gate, _active(gate, ctx.activation).mul_(dy), None


def _product(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return _active(gate, activation).mul_(up)


def _gated_again(ctx: Any) -> Tensor:
    gate, up = ctx.saved_tensors
    return _product(gate, up, ctx.activation)


def _active(gate: Tensor, activation: str) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As `naive.rotate`: `q` [B, heads, T, D], `k` [B, key heads, T, D], `cos`, `sin` [B or 1, T, D]."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, back=True).to(ctx.dtype), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    half = x.shape[-1] // 2
    sign = 1 if back else -1
    out = x * cos
    # Back, each number meets the sine that its partner was multiplied with. Products are rounded before
    # they are added, as the modules do.
    first, second = sin[..., :half], sin[..., half:]
    out[..., :half].add_(x[..., half:] * (second if back else first), alpha=sign)
    out[..., half:].add_(x[..., :half] * (first if back else second), alpha=-sign)
    return out
