"""RMSNorm in one pass over its rows, and its gradients in one more.

Forward: a program takes `ROWS` whole rows of `WIDTH` numbers, finds each row's mean square in float32, and
writes the normalised rows and, for the way back, one float32 number a row. Rows in float32 never exist in
memory, nor does anything between the two roundings that the module itself makes (`naive.NormForm`).

Backward: with n = x * r the normalised row and g = dy * w, dx = r * (g - n * mean(g * n)) and
dw = sum over rows of dy * n. A fixed number of programs each walk every so-manieth tile of rows and keep
their part of dw in float32 registers; the parts are written once and added by one sum. No atomics: the
order of additions hangs on the shape and the device alone, so a step gives the same bits each time.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clair_apo.errors import ClairError
from clair_apo.train.kernels.layers.naive import LLAMA, NormForm
from clair_apo.train.kernels.layers.remake import remakeable
from clair_apo.train.kernels.spec import Spec

# Wider rows would spill registers: a program holds whole rows.
WIDEST = 8192
# Numbers that a program holds at a time, where rows are short (norms of single heads).
_TILE = 4096
# Programs of the backward pass on a device without a count of processors.
_PROGRAMS = 4


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, form: NormForm = LLAMA) -> Tensor:
    """As `naive.rms_norm`, with statistics and gradients in float32.

    `x` [..., W] and `weight` [W] in float32, bfloat16 or float16. Returns [..., W], in the dtype of `x` or,
    where the form rounds first, the wider of the two. Raises: ClairError if W is above `WIDEST`.
    """
    if x.shape[-1] > WIDEST:
        raise ClairError(f"rows of {x.shape[-1]} numbers are too wide for one program ({WIDEST})")
    return remakeable(_RmsNorm.apply(x, weight, epsilon, form), _again)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, form: NormForm) -> Tensor:
        x = x.contiguous()
        y, scales = _normalised(x, weight, epsilon, form)
        ctx.save_for_backward(x, weight, scales)
        ctx.epsilon, ctx.form = epsilon, form
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, scales = ctx.saved_tensors
        dy = grads[0].contiguous()
        width, rows = x.shape[-1], len(scales)
        of_weight = ctx.needs_input_grad[1]
        shape = _shape(width)
        programs = min(_programs(x.device), triton.cdiv(rows, shape["ROWS"]))
        dx = torch.empty_like(x)
        parts = torch.empty(programs if of_weight else 0, width, dtype=torch.float32, device=x.device)
        if rows:
            _backward[(programs,)](
                dy, x, weight, scales, dx, parts, rows, width, *ctx.form, of_weight, **shape
            )
        return dx, parts.sum(0).to(weight.dtype) if of_weight else None, None, None


def _normalised(x: Tensor, weight: Tensor, epsilon: float, form: NormForm) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    rows = x.numel() // width
    dtype = torch.promote_types(x.dtype, weight.dtype) if form.rounds_first else x.dtype
    y = torch.empty_like(x, dtype=dtype)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    shape = _shape(width)
    if rows:
        _forward[(triton.cdiv(rows, shape["ROWS"]),)](
            x, weight, y, scales, rows, width, epsilon, *form, **shape
        )
    return y, scales


def _again(ctx: Any) -> Tensor:
    x, weight, _ = ctx.saved_tensors
    return _normalised(x, weight, ctx.epsilon, ctx.form)[0]


def _shape(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    rows = max(1, _TILE // block)
    return {"ROWS": rows, "WIDTH": block, "num_warps": max(4, rows * block // 512)}


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return _PROGRAMS
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _forward(
    x_pointer,
    weight_pointer,
    y_pointer,
    scales_pointer,
    rows,
    width,
    epsilon,
    OFFSET: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    weight = tl.load(weight_pointer + column, mask=column < width, other=0.0).to(tl.float32) + OFFSET
    x = tl.load(x_pointer + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / width + epsilon)
    tl.store(scales_pointer + row, scale, mask=row < rows)
    normal = x * scale[:, None]
    if ROUNDS_FIRST:
        normal = normal.to(x_pointer.dtype.element_ty).to(tl.float32)
    y = normal * weight[None, :]
    tl.store(y_pointer + at, y.to(y_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    dy_pointer,
    x_pointer,
    weight_pointer,
    scales_pointer,
    dx_pointer,
    parts_pointer,
    rows,
    width,
    OFFSET: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    OF_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    part = tl.zeros((ROWS, WIDTH), tl.float32)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        dy = tl.load(dy_pointer + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_pointer + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales_pointer + row, mask=row < rows, other=0.0)[:, None]
        normal = x * scale
        if OF_WEIGHT:
            if ROUNDS_FIRST:
                part += dy * normal.to(x_pointer.dtype.element_ty).to(tl.float32)
            else:
                part += dy * normal
        # Read again for each tile: it lies in the cache, and would take registers of the whole loop.
        weight = tl.load(weight_pointer + column, mask=column < width, other=0.0).to(tl.float32) + OFFSET
        dy *= weight[None, :]
        dx = scale * (dy - normal * (tl.sum(dy * normal, 1) / width)[:, None])
        tl.store(dx_pointer + at, dx.to(dx_pointer.dtype.element_ty), mask=inside)
    if OF_WEIGHT:
        at = program.to(tl.int64) * width + column
        tl.store(parts_pointer + at, tl.sum(part, 0), mask=column < width)


# The norms of the reference shape: 8192 rows of 4096 numbers in bfloat16.
_REFERENCE = 8192 * 4096 * 2
SPECS = (
    Spec(
        "layers: RMSNorm",
        _forward,
        {
            **dict.fromkeys(("x_pointer", "weight_pointer", "y_pointer"), "*bf16"),
            "scales_pointer": "*fp32",
            "rows": "i32",
            "width": "i32",
            "epsilon": "fp32",
            **dict.fromkeys(("OFFSET", "ROUNDS_FIRST", "ROWS", "WIDTH"), "constexpr"),
        },
        {"OFFSET": 0.0, "ROUNDS_FIRST": True, "ROWS": 1, "WIDTH": 4096},
        num_warps=8,
        bytes=2 * _REFERENCE,
    ),
    Spec(
        "layers: RMSNorm, gradients",
        _backward,
        {
            **dict.fromkeys(("dy_pointer", "x_pointer", "weight_pointer", "dx_pointer"), "*bf16"),
            **dict.fromkeys(("scales_pointer", "parts_pointer"), "*fp32"),
            "rows": "i32",
            "width": "i32",
            **dict.fromkeys(("OFFSET", "ROUNDS_FIRST", "OF_WEIGHT", "ROWS", "WIDTH"), "constexpr"),
        },
        {"OFFSET": 0.0, "ROUNDS_FIRST": True, "OF_WEIGHT": True, "ROWS": 1, "WIDTH": 4096},
        num_warps=8,
        bytes=3 * _REFERENCE,
    ),
)
