"""RoPE on queries and keys in one launch.

A program takes one token: it reads the token's cosines and sines once, and turns its query heads and then
its key heads, `HEADS` at a time. Negated and concatenated halves never exist in memory. Where a token
stands in its sequence is only in the cosines and sines, which are the model's own, so positions that
restart within a microbatch and scaled frequencies are nothing special here.

The way back is the same turn by the negative angle. Products are rounded to the output's dtype before they
are added, as the module's own are, so both give the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clair_apo.train.kernels.spec import Spec

# Heads that a program turns at a time.
_HEADS = 8


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As `naive.rotate`: `q` [B, heads, T, D] and `k` [B, key heads, T, D] in any layout, `cos` and `sin`
    [B or 1, T, D]. Returns both turned, in the wider of their dtype and that of `cos`, with the heads of a
    token next to each other in memory. No gradient goes to `cos` and `sin`.

    Raises: ValueError where the shapes are others.
    """
    batch, _, tokens, size = q.shape
    if k.shape[::2] != q.shape[::2] or k.shape[3] != size or size % 2 or k.dtype != q.dtype:
        raise ValueError(f"queries {tuple(q.shape)} and keys {tuple(k.shape)} cannot be turned together")
    if cos.shape != sin.shape or cos.shape[1:] != (tokens, size) or cos.shape[0] not in (1, batch):
        raise ValueError(f"cosines {tuple(cos.shape)} are not those of queries {tuple(q.shape)}")
    turned: tuple[Tensor, Tensor] = _Rotate.apply(q, k, cos, sin)
    return turned


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = q.dtype
        dtype = torch.promote_types(q.dtype, cos.dtype)
        return _turn(q, k, cos, sin, dtype, inverse=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return *_turn(*grads, cos, sin, ctx.dtype, inverse=True), None, None


def _turn(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, *, inverse: bool
) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, size = q.shape
    key_heads = k.shape[1]
    q, k, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, cos, sin))
    cos, sin = (x.expand(batch, -1, -1) for x in (cos, sin))
    turned_q = torch.empty(batch, tokens, heads, size, dtype=dtype, device=q.device)
    turned_k = torch.empty(batch, tokens, key_heads, size, dtype=dtype, device=q.device)
    if batch * tokens:
        _rotate[(batch * tokens,)](
            *(q, k, cos, sin, turned_q, turned_k),
            *(tokens, heads, key_heads, size // 2),
            *(q.stride()[:3] + k.stride()[:3] + cos.stride()[:2] + sin.stride()[:2]),
            INVERSE=inverse,
            HEADS=_HEADS,
            HALF=triton.next_power_of_2(size // 2),
        )
    return turned_q.transpose(1, 2), turned_k.transpose(1, 2)


@triton.jit
def _rotate(
    q_pointer,
    k_pointer,
    cos_pointer,
    sin_pointer,
    turned_q_pointer,
    turned_k_pointer,
    tokens,
    heads,
    key_heads,
    half,
    q_sequence,
    q_head,
    q_token,
    k_sequence,
    k_head,
    k_token,
    cos_sequence,
    cos_token,
    sin_sequence,
    sin_token,
    INVERSE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    sequence, token = place // tokens, place % tokens
    i = tl.arange(0, HALF)
    real = i < half
    cosines = cos_pointer + sequence * cos_sequence + token * cos_token + i
    sines = sin_pointer + sequence * sin_sequence + token * sin_token + i
    # The halves are equal in most models; nothing here counts on it.
    cos_1 = tl.load(cosines, mask=real, other=0.0).to(tl.float32)
    cos_2 = tl.load(cosines + half, mask=real, other=0.0).to(tl.float32)
    sin_1 = -tl.load(sines, mask=real, other=0.0).to(tl.float32)
    sin_2 = tl.load(sines + half, mask=real, other=0.0).to(tl.float32)
    if INVERSE:
        sin_1, sin_2 = sin_2, sin_1
    from_q = q_pointer + sequence * q_sequence + token * q_token
    to_q = turned_q_pointer + place * heads * 2 * half
    _turn_heads(from_q, to_q, q_head, heads, half, cos_1, cos_2, sin_1, sin_2, HEADS, HALF)
    from_k = k_pointer + sequence * k_sequence + token * k_token
    to_k = turned_k_pointer + place * key_heads * 2 * half
    _turn_heads(from_k, to_k, k_head, key_heads, half, cos_1, cos_2, sin_1, sin_2, HEADS, HALF)


@triton.jit
def _turn_heads(
    x_pointer,
    y_pointer,
    x_head,
    heads,
    half,
    cos_1,
    cos_2,
    sin_1,
    sin_2,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One token's heads: the first halves become x1 cos1 + x2 sin1, the second ones x2 cos2 + x1 sin2."""
    i = tl.arange(0, HALF)
    dtype = y_pointer.dtype.element_ty
    for first in range(0, heads, HEADS):
        head = first + tl.arange(0, HEADS)
        inside = (head < heads)[:, None] & (i < half)[None, :]
        read = head.to(tl.int64)[:, None] * x_head + i[None, :]
        write = head[:, None] * 2 * half + i[None, :]
        x_1 = tl.load(x_pointer + read, mask=inside, other=0.0).to(tl.float32)
        x_2 = tl.load(x_pointer + read + half, mask=inside, other=0.0).to(tl.float32)
        y_1 = _rounded(x_1 * cos_1[None, :], dtype) + _rounded(x_2 * sin_1[None, :], dtype)
        y_2 = _rounded(x_2 * cos_2[None, :], dtype) + _rounded(x_1 * sin_2[None, :], dtype)
        tl.store(y_pointer + write, y_1.to(dtype), mask=inside)
        tl.store(y_pointer + write + half, y_2.to(dtype), mask=inside)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    return x.to(dtype).to(tl.float32)


# The reference shape: 8192 tokens, 32 query heads and 8 key heads of 128 numbers, in bfloat16.
_STRIDES = (
    *("q_sequence", "q_head", "q_token", "k_sequence", "k_head", "k_token"),
    *("cos_sequence", "cos_token", "sin_sequence", "sin_token"),
)
SPECS = (
    Spec(
        "layers: RoPE",
        _rotate,
        {
            **dict.fromkeys(("q_pointer", "k_pointer", "cos_pointer", "sin_pointer"), "*bf16"),
            **dict.fromkeys(("turned_q_pointer", "turned_k_pointer"), "*bf16"),
            **dict.fromkeys(("tokens", "heads", "key_heads", "half", *_STRIDES), "i32"),
            **dict.fromkeys(("INVERSE", "HEADS", "HALF"), "constexpr"),
        },
        {"INVERSE": False, "HEADS": _HEADS, "HALF": 64},
        bytes=8192 * (2 * 40 + 2) * 128 * 2,
    ),
)
