"""The head's kernels over tensors: sizes, strides, tensor descriptors, grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from clair_apo.train.head import HeadShape
from clair_apo.train.kernels import interpreted
from clair_apo.train.kernels.head import products
from clair_apo.train.kernels.head.products import ROWS_AT_ONCE, Tiles, tiles_of


@dataclass(frozen=True, slots=True)
class Head:
    """What makes logits of hidden rows: `weight` [V, H], `bias` [V] or None, and what `shape` says."""

    weight: Tensor
    bias: Tensor | None
    shape: HeadShape

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    def columns(self, part: slice) -> Head:
        """The head of some of the vocabulary."""
        return Head(self.weight[part], None if self.bias is None else self.bias[part], self.shape)


@dataclass(frozen=True, slots=True)
class Softmax:
    """What turns logits of n rows into probabilities: the `highest` of each row, and the `sums` of
    exp(logit - highest); float32 [n] each."""

    highest: Tensor
    sums: Tensor


def distributions(
    head: Head, hidden: Tensor, targets: Tensor, kept: Tensor | None = None
) -> tuple[Tensor, Softmax, Tensor]:
    """Of `hidden` [n, H] and `targets` [n] int64: the targets' log-probabilities, float32 [n], and their
    softmax.

    `kept` [n, V], of the dtype of `hidden` and with rows that begin at multiples of 16 bytes, is filled
    with exp(logit - maximum), the maximum being that of its tile; the maxima [column tiles, n] come back
    too.
    """
    count, width = hidden.shape
    tiles = tiles_of(hidden.dtype)
    hidden, weight = _factor(hidden), _factor(head.weight)
    maxima = hidden.new_empty(-(-head.vocabulary // tiles.columns), count, dtype=torch.float32)
    sums = torch.empty_like(maxima)
    # A target beyond the vocabulary stays not a number.
    chosen = hidden.new_full((count,), torch.nan, dtype=torch.float32)
    with _device_of(hidden):
        products.distributions[_grid(count, head.vocabulary, tiles)](
            _matrix(hidden, tiles.rows, tiles.depth),
            _matrix(weight, tiles.columns, tiles.depth),
            head.weight if head.bias is None else head.bias,
            targets,
            chosen if kept is None else _matrix(kept, *tiles.out),
            maxima,
            sums,
            chosen,
            count,
            width,
            head.vocabulary,
            hidden.stride(0),
            weight.stride(0),
            0 if kept is None else kept.stride(0),
            KEEP=kept is not None,
            **_of_shape(head),
            **_of_product(tiles, hidden),
        )
    highest = maxima.amax(0)
    total = sums.mul_(maxima.sub(highest).exp_()).sum(0)
    # In this order: log-sum-exp itself would round away what differs where logits are huge.
    return chosen - highest - total.log(), Softmax(highest, total), maxima


def slopes(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    softmax: Softmax,
    coefficients: Tensor,
    part: slice,
    out: Tensor,
) -> None:
    """Into `out` [n, length of `part`]: gradients of `hidden @ weight.T + bias` at a part of the
    vocabulary, where the targets' log-probabilities have `coefficients` [n] float32."""
    count, width = hidden.shape
    tiles = tiles_of(hidden.dtype)
    some = head.columns(part)
    hidden, weight = _factor(hidden), _factor(some.weight)
    with _device_of(hidden):
        products.slopes[_grid(count, some.vocabulary, tiles)](
            _matrix(hidden, tiles.rows, tiles.depth),
            _matrix(weight, tiles.columns, tiles.depth),
            some.weight if some.bias is None else some.bias,
            targets,
            _matrix(out, *tiles.out),
            softmax.highest,
            softmax.sums,
            coefficients * head.shape.scale,
            count,
            width,
            some.vocabulary,
            part.start,
            hidden.stride(0),
            weight.stride(0),
            out.stride(0),
            **_of_shape(head),
            **_of_product(tiles, hidden),
        )


def gradients(
    kept: Tensor,
    maxima: Tensor,
    targets: Tensor,
    logps: Tensor,
    softmax: Softmax,
    coefficients: Tensor,
    scale: float,
) -> None:
    """Turns what `distributions` kept into what `slopes` writes for the whole vocabulary of a head without
    a soft cap."""
    count, vocabulary = kept.shape
    factors = coefficients * scale
    # 1 - p from log p: near 1 a rounded p would have nothing left.
    on_target = -factors * torch.expm1(logps)
    with _device_of(kept):
        products.gradients[(-(-count // ROWS_AT_ONCE), len(maxima))](
            kept,
            maxima,
            softmax.highest,
            softmax.sums,
            factors,
            on_target,
            targets,
            count,
            vocabulary,
            kept.stride(0),
            ROWS=ROWS_AT_ONCE,
            COLUMNS=tiles_of(kept.dtype).columns,
        )


def add_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """`out` [n, H] float32 += `left` [n, k] @ `right` [k, H], both of one dtype."""
    tiles = tiles_of(left.dtype)
    left, right = _factor(left), _factor(right)
    with _device_of(left):
        products.add_product[_grid(len(left), right.shape[1], tiles)](
            _matrix(left, tiles.rows, tiles.depth),
            _matrix(right, tiles.depth, tiles.columns),
            _matrix(out, *tiles.out),
            *left.shape,
            right.shape[1],
            left.stride(0),
            right.stride(0),
            out.stride(0),
            **_of_product(tiles, left),
        )


def aligned(matrix: Tensor) -> Tensor:
    """`matrix` itself if its rows begin at multiples of 16 bytes, as tensor descriptors want them, or a
    copy where they do. Sizes of models in use are multiples of 8."""
    size = matrix.element_size()
    if matrix.stride(1) == 1 and matrix.stride(0) * size % 16 == 0 and matrix.data_ptr() % 16 == 0:
        return matrix
    return aligned_empty(matrix, *matrix.shape).copy_(matrix)


def aligned_empty(like: Tensor, rows: int, columns: int) -> Tensor:
    """[rows, columns] of the dtype of `like`, each row at a multiple of 16 bytes."""
    step = 16 // like.element_size()
    return like.new_empty(rows, -(-columns // step) * step)[:, :columns]


def described(device: torch.device) -> bool:
    """Whether matrices come as tensor descriptors: in hardware Hopper is the first to have them."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def _device_of(tensor: Tensor) -> torch.cuda.device_of:
    """Makes the device of `tensor` the current one, where kernels run."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _factor(matrix: Tensor) -> Tensor:
    """A factor of a product. Triton's interpreter multiplies the bits of bf16 as if they were integers, so
    there it is made float32, in which products of bf16 are the same."""
    return aligned(matrix.float()) if interpreted() else matrix


def _matrix(matrix: Tensor, rows: int, columns: int) -> Tensor | TensorDescriptor:
    """As a kernel takes it, in blocks of [rows, columns]."""
    if not described(matrix.device):
        return matrix
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


def _of_shape(head: Head) -> dict[str, Any]:
    return {
        "scale": float(head.shape.scale),
        "cap": float(head.shape.softcap or 1.0),
        "HAS_BIAS": head.bias is not None,
        "CAPPED": head.shape.softcap is not None,
    }


def _of_product(tiles: Tiles, factor: Tensor) -> dict[str, Any]:
    return {"TMA": described(factor.device), **tiles.constants, **tiles.options}


def _grid(rows: int, columns: int, tiles: Tiles) -> tuple[int]:
    return (-(-rows // tiles.rows) * -(-columns // tiles.columns),)
