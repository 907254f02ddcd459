"""RMSNorm, RoPE and gated units as the modules of transformers do them: the truth for the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NormForm(NamedTuple):
    """In which order an RMSNorm rounds: what families differ in.

    `offset`: added to the weight (1 where a weight of zero means no scaling, as in Gemma).
    `rounds_first`: whether normalised rows are rounded to their own dtype before they meet the weight.
    """

    offset: float
    rounds_first: bool


LLAMA, GEMMA, OLMO2 = NormForm(0.0, True), NormForm(1.0, False), NormForm(0.0, False)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, form: NormForm) -> Tensor:
    """`x` [..., W] over the root of its mean square, times `weight` [W] (Zhang, Sennrich 2019, eq. 4)."""
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if form.rounds_first:
        return (weight + form.offset) * normal.to(x.dtype)
    return (normal * (weight.float() + form.offset)).to(x.dtype)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turns each pair of numbers (i, i + D/2) of `q` [B, heads, T, D] and `k` [B, key heads, T, D] by its
    token's angle; `cos`, `sin` [B or 1, T, D] (RoPE: Su et al. 2021, in the half-split layout)."""

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]

    return turned(q), turned(k)


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """`activation(gate) * up`, with "silu" (SwiGLU, Shazeer 2020) or "gelu-tanh" (GEGLU)."""
    if activation == "silu":
        return torch.nn.functional.silu(gate) * up
    return torch.nn.functional.gelu(gate, approximate="tanh") * up
