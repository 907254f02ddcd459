"""Triton kernels of the head: products of hidden rows and weight whose logits stay on chip.

Stages of the two kernels that make logits (`distributions`, `slopes`): a tile of logits, [ROWS, COLUMNS],
is a loop over the hidden numbers. Tiles of both factors come into a pipeline of shared memory, through
tensor descriptors (TMA) on Hopper and later, and matrix instructions add their product to float32
accumulators.
Scale, bias and soft cap are applied to the accumulators, and the tile ends as one of these:
- `distributions`: for each row its maximum, the sum of exp(logit - maximum), and the target's logit where
  it lies in the tile; with KEEP also exp(logit - maximum) itself, in the dtype of the factors.
- `slopes`: d log p(target) / d logit times a coefficient for each row, in the dtype of the factors.
`gradients` turns what `distributions` kept into what `slopes` writes, in place, without a product.
`add_product` adds a product to a float32 matrix: the hidden rows' gradient, a slice of the vocabulary at a
time.

Never in memory: logits. What `distributions` keeps lies in [0, 1] beside a float32 maximum for each row and
tile, so rounding to bf16 is an error of at most 2**-8 of each probability, whatever the logits; a logit
itself, rounded at 30, would be off by up to 2**-4, and the probability by 6%. Log-sum-exp and target logit
never leave float32.

A tile is small enough for two programs on each multiprocessor of an H100, so one multiplies while the other
finishes its tile. Tiles go in groups of GROUP row tiles that share their columns, so that both factors come
from the L2 cache. What lies beyond the matrices is read as 0 and not written.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from clair_apo.train.kernels.spec import Spec

GROUP = tl.constexpr(8)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut: tiles of ROWS x COLUMNS, DEPTH numbers of the sums at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def out(self) -> tuple[int, int]:
        """What is written at a time."""
        return self.rows, self.columns // 4

    @property
    def constants(self) -> dict[str, int]:
        return {"ROWS": self.rows, "COLUMNS": self.columns, "DEPTH": self.depth}

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


SHORT = Tiles(128, 128, 64, warps=8, stages=3)  # bf16, float16
LONG = Tiles(64, 64, 32, warps=8, stages=3)  # float32, which has no matrix instruction that is exact
ROWS_AT_ONCE = 16  # of `gradients`


def tiles_of(dtype: torch.dtype) -> Tiles:
    return SHORT if dtype.itemsize == 2 else LONG


@triton.jit
def place(count, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """First row and first column of this program's tile: columns by columns within a group of row tiles."""
    tile = tl.program_id(0)
    in_group = GROUP * tl.cdiv(columns, COLUMNS)
    first = tile // in_group * GROUP
    height = min(tl.cdiv(count, ROWS) - first, GROUP)
    within = tile % in_group
    return (first + within % height) * ROWS, within // height * COLUMNS


@triton.jit
def read(matrix, row, column, count, width, stride, R: tl.constexpr, C: tl.constexpr, TMA: tl.constexpr):
    """[R, C] from (row, column) on of `matrix` [count, width]: its tensor descriptor, or its pointer."""
    if TMA:
        values = matrix.load([row, column])
    else:
        rows, columns = row + tl.arange(0, R), column + tl.arange(0, C)
        places = matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        inside = (rows < count)[:, None] & (columns < width)[None, :]
        values = tl.load(places, mask=inside, other=0.0)
    return values


@triton.jit
def write(matrix, row, column, count, width, stride, values, TMA: tl.constexpr):
    """Puts `values` where `read` would take them from."""
    if TMA:
        matrix.store([row, column], values.to(matrix.dtype))
    else:
        rows = row + tl.arange(0, values.shape[0])
        columns = column + tl.arange(0, values.shape[1])
        places = matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        inside = (rows < count)[:, None] & (columns < width)[None, :]
        tl.store(places, values.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def halves(tile):
    """The left and the right half of a tile."""
    rows: tl.constexpr = tile.shape[0]
    half: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(tile, (rows, 2, half)), (0, 2, 1)))


@triton.jit
def quarters(tile):
    """A tile as four, of a quarter of its columns each. What follows a product is done to one after the
    other, which takes fewer registers beside the accumulators."""
    left, right = halves(tile)
    first, second = halves(left)
    third, fourth = halves(right)
    return first, second, third, fourth


@triton.jit
def logits_of_tile(
    hidden, weight, bias, row, column, count, width, vocabulary, hidden_stride, weight_stride, scale, cap,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, TMA: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Logits [ROWS, COLUMNS] float32 from (row, column) on; -inf beyond the vocabulary."""
    logits = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, width, DEPTH):
        left = read(hidden, row, start, count, width, hidden_stride, ROWS, DEPTH, TMA)
        right = read(weight, column, start, vocabulary, width, weight_stride, COLUMNS, DEPTH, TMA)
        logits = tl.dot(left, right.T, logits, input_precision="ieee")
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < vocabulary
    if HAS_BIAS:
        logits += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    logits *= scale
    if CAPPED:
        # tanh, which Triton has only as a library call.
        falling = tl.exp(-2 * tl.abs(logits) / cap)
        size = cap * (1 - falling) / (1 + falling)
        logits = tl.where(logits < 0, -size, size)
    return tl.where(inside[None, :], logits, float("-inf"))


@triton.jit
def distributions(
    hidden, weight, bias, targets, kept, maxima, sums, chosen, count, width, vocabulary,
    hidden_stride, weight_stride, kept_stride, scale, cap,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, KEEP: tl.constexpr, TMA: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Softmax of each row, tile by tile of columns.

    `hidden` [count, width], `weight` [vocabulary, width] and (with KEEP) `kept` [count, vocabulary] are
    tensor descriptors, or pointers without TMA. `maxima`, `sums` [column tiles, count] and `chosen` [count]
    are float32, `targets` [count] int64. A row whose tile is all -inf has the maximum -inf and the sum 0.
    """
    row, column = place(count, vocabulary, ROWS, COLUMNS)
    logits = logits_of_tile(
        hidden, weight, bias, row, column, count, width, vocabulary, hidden_stride, weight_stride,
        scale, cap, HAS_BIAS, CAPPED, TMA, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    maximum = tl.max(logits, 1)
    base = tl.where(maximum == float("-inf"), 0.0, maximum)
    rows = row + tl.arange(0, ROWS)
    there = rows < count
    target = (tl.load(targets + rows, mask=there, other=-1) - column).to(tl.int32)
    total = tl.zeros((ROWS,), tl.float32)
    own = tl.zeros((ROWS,), tl.float32)
    parts = quarters(logits)
    for number in tl.static_range(4):
        before = number * (COLUMNS // 4)
        hit = tl.arange(0, COLUMNS // 4)[None, :] == (target - before)[:, None]
        own += tl.sum(tl.where(hit, parts[number], 0.0), 1)
        exps = tl.exp(parts[number] - base[:, None])
        total += tl.sum(exps, 1)
        if KEEP:
            write(kept, row, column + before, count, vocabulary, kept_stride, exps, TMA)
    into = (column // COLUMNS).to(tl.int64) * count + rows
    tl.store(maxima + into, maximum, mask=there)
    tl.store(sums + into, total, mask=there)
    tl.store(chosen + rows, own, mask=there & (target >= 0) & (target < COLUMNS))


@triton.jit
def slopes(
    hidden, weight, bias, targets, out, highest, sums, coefficients, count, width, vocabulary, first,
    hidden_stride, weight_stride, out_stride, scale, cap,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, TMA: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Gradients of `hidden @ weight.T + bias` for a slice of the vocabulary that begins at `first`.

    `hidden` [count, width], `weight` [vocabulary, width] and `out` [count, vocabulary] are tensor
    descriptors, or pointers without TMA; `vocabulary` is the length of the slice. `highest`, `sums`,
    `coefficients` [count] are float32: of each row the greatest logit, the sum of exp(logit - greatest),
    and what d log p(target) is multiplied by, with the scale in it.
    """
    row, column = place(count, vocabulary, ROWS, COLUMNS)
    logits = logits_of_tile(
        hidden, weight, bias, row, column, count, width, vocabulary, hidden_stride, weight_stride,
        scale, cap, HAS_BIAS, CAPPED, TMA, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    rows = row + tl.arange(0, ROWS)
    there = rows < count
    peak = tl.load(highest + rows, mask=there, other=0.0)
    inverse = 1 / tl.load(sums + rows, mask=there, other=1.0)
    coefficient = tl.load(coefficients + rows, mask=there, other=0.0)
    target = (tl.load(targets + rows, mask=there, other=-1) - first - column).to(tl.int32)
    parts = quarters(logits)
    for number in tl.static_range(4):
        before = number * (COLUMNS // 4)
        hit = tl.arange(0, COLUMNS // 4)[None, :] == (target - before)[:, None]
        share = tl.exp(parts[number] - peak[:, None]) * inverse[:, None]
        gradient = coefficient[:, None] * (tl.where(hit, 1.0, 0.0) - share)
        if CAPPED:
            bent = parts[number] / cap
            gradient *= 1 - bent * bent
        write(out, row, column + before, count, vocabulary, out_stride, gradient, TMA)


@triton.jit
def gradients(
    kept, maxima, highest, sums, coefficients, on_target, targets, count, vocabulary, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of `hidden @ weight.T + bias` in the place of what `distributions` kept.

    `kept` [count, vocabulary], its rows `stride` apart; `maxima` [column tiles, count] as `distributions`
    made it with the same COLUMNS; `highest`, `sums`, `coefficients` as for `slopes`; `on_target` [count]
    float32 the gradients at the targets, which come from float32 logits.
    """
    row_tile, column_tile = tl.program_id(0), tl.program_id(1)
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    there = rows < count
    peak = tl.load(highest + rows, mask=there, other=0.0)
    total = tl.load(sums + rows, mask=there, other=1.0)
    coefficient = tl.load(coefficients + rows, mask=there, other=0.0)
    maximum = tl.load(maxima + column_tile.to(tl.int64) * count + rows, mask=there, other=0.0)
    factor = -coefficient * tl.exp(maximum - peak) / total
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    places = kept + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = there[:, None] & (columns < vocabulary)[None, :]
    numbers = tl.load(places, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    hit = columns[None, :] == tl.load(targets + rows, mask=there, other=-1)[:, None]
    exact = tl.load(on_target + rows, mask=there, other=0.0)
    numbers = tl.where(hit, exact[:, None], numbers)
    tl.store(places, numbers.to(kept.dtype.element_ty), mask=inside)


@triton.jit
def add_product(
    left, right, out, count, inner, width, left_stride, right_stride, out_stride, TMA: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`out` [count, width] float32 += `left` [count, inner] @ `right` [inner, width]: tensor descriptors,
    or pointers without TMA."""
    row, column = place(count, width, ROWS, COLUMNS)
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, inner, DEPTH):
        one = read(left, row, start, count, inner, left_stride, ROWS, DEPTH, TMA)
        two = read(right, start, column, inner, width, right_stride, DEPTH, COLUMNS, TMA)
        product = tl.dot(one, two, product, input_precision="ieee")
    parts = quarters(product)
    for number in tl.static_range(4):
        at = column + number * (COLUMNS // 4)
        sums = read(out, row, at, count, width, out_stride, ROWS, COLUMNS // 4, TMA) + parts[number]
        write(out, row, at, count, width, out_stride, sums, TMA)


def _product(
    name: str, kernel: Any, arguments: dict[str, str], constants: dict[str, Any], flops: float, moved: float
) -> Spec:
    constants = {**constants, "TMA": True, **SHORT.constants}
    signature = {**arguments, **dict.fromkeys(constants, "constexpr")}
    return Spec(name, kernel, signature, constants, SHORT.warps, SHORT.stages, True, flops, moved)


def _block(dtype: str, *sizes: int) -> str:
    return f"tensordesc<{dtype}[{','.join(map(str, sizes))}]>"


def _specs() -> tuple[Spec, ...]:
    """All kernels in bf16, at 8,192 rows, 4,096 hidden numbers and 128,256 tokens."""
    n, h, v, slice_columns = 8192, 4096, 128256, 8192
    factors = {
        "hidden": _block("bf16", SHORT.rows, SHORT.depth),
        "weight": _block("bf16", SHORT.columns, SHORT.depth),
        "bias": "*bf16",
        "targets": "*i64",
    }
    out = _block("bf16", *SHORT.out)
    sizes = {"count": "i32", "width": "i32", "vocabulary": "i32"}
    strides = {"hidden_stride": "i32", "weight_stride": "i32"}
    numbers = {"scale": "fp32", "cap": "fp32"}
    statistics = {"maxima": "*fp32", "sums": "*fp32", "chosen": "*fp32"}
    rows = {"highest": "*fp32", "sums": "*fp32", "coefficients": "*fp32"}
    full = {"HAS_BIAS": True, "CAPPED": True}
    product, read = 2.0 * n * h * v, 2.0 * h * (n + v)
    of_slice, read_slice = 2.0 * n * h * slice_columns, 2.0 * h * (n + slice_columns)
    written = 2.0 * n * v
    forward = {
        **factors,
        "kept": "*fp32",
        **statistics,
        **sizes,
        **strides,
        "kept_stride": "i32",
        **numbers,
    }
    keeping = {**forward, "kept": out}
    backward = {**factors, "out": out, **rows, **sizes, "first": "i32"}
    backward |= {**strides, "out_stride": "i32", **numbers}
    adding = {
        "left": _block("bf16", SHORT.rows, SHORT.depth),
        "right": _block("bf16", SHORT.depth, SHORT.columns),
        "out": _block("fp32", *SHORT.out),
        "count": "i32",
        "inner": "i32",
        "width": "i32",
        "left_stride": "i32",
        "right_stride": "i32",
        "out_stride": "i32",
    }
    in_place = {
        "kept": "*bf16",
        "maxima": "*fp32",
        **rows,
        "on_target": "*fp32",
        "targets": "*i64",
        "count": "i32",
        "vocabulary": "i32",
        "stride": "i32",
        "ROWS": "constexpr",
        "COLUMNS": "constexpr",
    }
    return (
        _product(
            "head: log-probabilities",
            distributions,
            forward,
            {"HAS_BIAS": False, "CAPPED": False, "KEEP": False},
            product,
            read,
        ),
        _product(
            "head: log-probabilities, bias and soft cap",
            distributions,
            forward,
            full | {"KEEP": False},
            product,
            read,
        ),
        _product(
            "head: log-probabilities, probabilities kept",
            distributions,
            keeping,
            {"HAS_BIAS": False, "CAPPED": False, "KEEP": True},
            product,
            read + written,
        ),
        _product(
            "head: gradients of a slice, bias and soft cap",
            slopes,
            backward,
            full,
            of_slice,
            read_slice + 2.0 * n * slice_columns,
        ),
        _product(
            "head: hidden gradient of a slice",
            add_product,
            adding,
            {},
            of_slice,
            2.0 * slice_columns * (n + h) + 8.0 * n * h,
        ),
        Spec(
            "head: gradients from what was kept",
            gradients,
            in_place,
            {"ROWS": ROWS_AT_ONCE, "COLUMNS": SHORT.columns},
            flops=2.0 * n * v,
            bytes=2 * written,
        ),
    )


SPECS = _specs()
