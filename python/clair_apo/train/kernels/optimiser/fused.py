"""One pass of AdamW or RMSprop over everything that a parameter has: gradient, bf16 weight, 16 low bits,
8-bit moments. `naive.py` is the truth, and tells the formats.

Stages, for a tile of `TILE` blocks of `BLOCK` numbers, each read once and written once (14 bytes a weight
with a bf16 gradient):
1. The gradient is scaled (clipping: a number on the device, so nobody waits for it), and the float32 master
   put together from weight and low bits, by integers.
2. Moments are decoded, changed, and used in float32, before they are rounded: a step sees the rounding of
   the steps before it, never its own.
3. The master is stepped and taken apart; the root of the second moment is rounded by its threshold, its
   block's largest exponent found, and the first moment put beside the root as it is stored.

Never in memory: the master, moments in float32, a scaled gradient, thresholds.

The operations are those of the twin in their order, so in the interpreter both agree bit by bit. Compiled,
products and sums may be contracted, quotients and roots are good to two units in the last place: the step
then differs by some 1e-7 of itself, and a code by one where it lay on an edge. A compiled pass itself is
deterministic. Places are int64, so a parameter may have more than 2**31 numbers.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from clair_apo.train.kernels.optimiser import naive
from clair_apo.train.kernels.optimiser.naive import Moments, Rule
from clair_apo.train.kernels.spec import Spec

BLOCK = tl.constexpr(naive.BLOCK)
MANTISSA = tl.constexpr(naive.MANTISSA)
OCTAVES = tl.constexpr(naive.OCTAVES)
DROPPED = tl.constexpr(naive.DROPPED)
STEEPNESS = tl.constexpr(naive.STEEPNESS)
BEND = tl.constexpr(naive.BEND)
LEVELS = tl.constexpr(float(naive.LEVELS))
LEVEL = tl.constexpr(1 / naive.LEVELS)
TINY = tl.constexpr(naive.TINY)
TILE = 16  # blocks a program
WARPS = 8


@triton.jit
def _threshold(place, turn):
    x = place.to(tl.uint32)
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    x = x ^ (x >> 16)
    x = x + turn.to(tl.uint32, bitcast=True)
    return (x >> (32 - DROPPED)).to(tl.int32)


@triton.jit
def _decoded_root(codes, base):
    bits = (codes + base) << DROPPED
    return tl.where(codes == 0, 0.0, bits.to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["first_row", "turn"])
def step_kernel(  # type: ignore[no-untyped-def]  # types of kernels are Triton's
    weight,
    low,
    gradient,
    mean,
    square,
    exponents,
    scale,
    rows,
    columns,
    first_row,
    turn,
    size,
    root_factor,
    decay,
    beta1,
    rest1,
    beta2,
    rest2,
    epsilon,
    ADAMW: tl.constexpr,
    CODED: tl.constexpr,
    BF16_GRADIENT: tl.constexpr,
    TILE: tl.constexpr,
):
    """A parameter [rows, columns]. bf16 tensors come as int16, whose bits are the upper ones of a float32;
    `rest1` is 1 - beta1, `rest2` 1 - beta2, the other numbers are those of `naive.Rule`."""
    a_row = tl.cdiv(columns, BLOCK)
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = (block // a_row)[:, None]
    column = (block % a_row)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < columns)
    place = row.to(tl.int64) * columns + column

    high = tl.load(weight + place, mask=inside, other=0).to(tl.int32)
    rest = tl.load(low + place, mask=inside, other=0).to(tl.int32)
    master = ((high << 16) + rest).to(tl.float32, bitcast=True)
    g = tl.load(gradient + place, mask=inside, other=0)
    if BF16_GRADIENT:
        g = (g.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    g = g * tl.load(scale)
    if not ADAMW:
        g = g + master * decay

    if CODED:
        exponent = tl.load(exponents + block, mask=block < rows * a_row.to(tl.int64), other=0).to(tl.int32)
        base = ((exponent - OCTAVES) << MANTISSA)[:, None]
        codes = tl.load(square + place, mask=inside, other=0).to(tl.int32)
        u = _decoded_root(codes, base)
        v = u * u
    else:
        v = tl.load(square + place, mask=inside, other=0.0)
    v = v * beta2 + (g * g) * rest2
    root = tl.sqrt(v)

    if ADAMW:
        if CODED:
            x = tl.load(mean + place, mask=inside, other=0).to(tl.float32) * LEVEL
            m = u * (x * STEEPNESS / (1.0 - tl.abs(x) * BEND))
        else:
            m = tl.load(mean + place, mask=inside, other=0.0)
        m = m * beta1 + g * rest1
        master = master * decay
    else:
        m = g
    master = master - m / (root * root_factor + epsilon) * size

    bits = master.to(tl.int32, bitcast=True)
    none = master != master
    high = tl.where(none, 0x7FC0, (bits + 0x8000) >> 16)
    tl.store(weight + place, high.to(tl.int16), mask=inside)
    tl.store(low + place, tl.where(none, 0, bits - (high << 16)).to(tl.int16), mask=inside)

    if CODED:
        threshold = _threshold(place + first_row.to(tl.int64) * columns, turn)
        # Beyond the row there are zeros: not a threshold that would count as a root.
        cut = tl.where(inside, root.to(tl.int32, bitcast=True) + threshold, 0) >> DROPPED
        exponent = tl.max(cut, axis=1) >> MANTISSA
        base = ((exponent - OCTAVES) << MANTISSA)[:, None]
        codes = tl.where(root > 0, tl.minimum(tl.maximum(cut - base, 1), 255), 0)
        tl.store(square + place, codes.to(tl.uint8), mask=inside)
        tl.store(exponents + block, exponent.to(tl.uint8), mask=block < rows * a_row.to(tl.int64))
        if ADAMW:
            u = _decoded_root(codes, base)
            against = u * STEEPNESS + tl.abs(m) * BEND
            x = m / tl.maximum(against, TINY)
            level = tl.floor(x * LEVELS + 0.5)
            level = tl.minimum(tl.maximum(level, -LEVELS), LEVELS)
            tl.store(mean + place, level.to(tl.int8), mask=inside)
    else:
        tl.store(square + place, v, mask=inside)
        if ADAMW:
            tl.store(mean + place, m, mask=inside)


def step(
    weight: Tensor,
    low: Tensor,
    gradient: Tensor,
    moments: Moments,
    scale: Tensor,
    rule: Rule,
    first_row: int = 0,
) -> None:
    """As `naive.step`."""
    rows, columns = weight.shape
    if not weight.numel():
        return
    coded = moments.exponents is not None
    bf16 = gradient.dtype == torch.bfloat16
    nothing = moments.square  # never read: a pointer for what this form does not have
    step_kernel[(triton.cdiv(rows * naive.blocks(columns), TILE),)](
        weight.view(torch.int16),
        low,
        gradient.view(torch.int16) if bf16 else gradient,
        nothing if moments.mean is None else moments.mean,
        moments.square,
        nothing if moments.exponents is None else moments.exponents,
        scale,
        rows,
        columns,
        first_row,
        rule.turn,
        rule.size,
        rule.root_factor,
        rule.decay,
        rule.beta1,
        1 - rule.beta1,
        rule.beta2,
        1 - rule.beta2,
        rule.epsilon,
        ADAMW=rule.adamw,
        CODED=coded,
        BF16_GRADIENT=bf16,
        TILE=TILE,
        num_warps=WARPS,
    )


def _spec(name: str, *, adamw: bool, coded: bool, bf16: bool = True) -> Spec:
    """Over all of an 8B model's weights."""
    moment = "*i8" if coded else "*fp32"
    numbers = ["size", "root_factor", "decay", "beta1", "rest1", "beta2", "rest2", "epsilon"]
    signature = {
        "weight": "*i16",
        "low": "*i16",
        "gradient": "*i16" if bf16 else "*fp32",
        "mean": moment if adamw else moment.replace("i8", "u8"),
        "square": moment.replace("i8", "u8"),
        "exponents": "*u8" if coded else "*fp32",
        "scale": "*fp32",
        **dict.fromkeys(["rows", "columns", "first_row", "turn"], "i32"),
        **dict.fromkeys(numbers, "fp32"),
        **dict.fromkeys(["ADAMW", "CODED", "BF16_GRADIENT", "TILE"], "constexpr"),
    }
    constants = {"ADAMW": adamw, "CODED": coded, "BF16_GRADIENT": bf16, "TILE": TILE}
    moments = (2 if adamw else 1) * (1 if coded else 4)
    a_weight = 2 * (2 + 2 + moments) + (2 if bf16 else 4)
    return Spec(name, step_kernel, signature, constants, num_warps=WARPS, bytes=8.03e9 * a_weight)


SPECS: tuple[Spec, ...] = (
    _spec("optimiser: AdamW", adamw=True, coded=True),
    _spec("optimiser: AdamW, float32 gradients", adamw=True, coded=True, bf16=False),
    _spec("optimiser: AdamW, float32 moments", adamw=True, coded=False),
    _spec("optimiser: RMSprop", adamw=False, coded=True),
    _spec("optimiser: RMSprop, float32 moments", adamw=False, coded=False),
)
