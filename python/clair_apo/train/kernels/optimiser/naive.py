"""The plain twin of `fused.py`: one step of AdamW or RMSprop over bf16 weights with 16 low bits, in torch.

**Weights.** A float32 master is kept as its bf16 neighbour (to nearest, ties away from zero), which is the
parameter itself, and the signed distance of their bit patterns, which fits 16 bits: (bf16 << 16) + low is
the master again, whatever it is. Ties to even would not do: both their neighbours would lie -32768 away.

**Second moment.** What is kept is its root, as an 8-bit float of its own: `MANTISSA` bits of mantissa, the
other four for how many octaves it lies below the largest of its block, whose exponent the block keeps in a
byte. A block is `BLOCK` numbers of one row, so a row holds whole blocks, and a tensor that is sharded by
rows has the same blocks whoever holds them. Rounding is stochastic: a step changes the root by 0.05%,
codes lie 3 to 6% apart, and rounding to nearest would never let it move. The thresholds of a number run
through a Weyl sequence over the steps (golden ratio), from a hash of its place, so that a step can be done
again and that rounding errors of neighbouring steps cancel. What lies below the block's sixteen octaves is
rounded up to its smallest code: its steps get shorter, they never blow up.

**First moment.** It is kept beside the root as stored, x = m / (A u + B |m|) in 127 steps to each side:
AdamW multiplies its rate with that ratio, it never passes 7.3 (beta 0.9 and 0.999), and so the code needs
no scale. Codes lie 0.4% of a full step apart at zero, 3% at one. To nearest: the mean changes by a
tenth of itself in a step.

What was tried, over 4,000 steps at a rate of 2e-7 against float32 AdamW, as |difference| / |way of the
weights|; gradients are noise with a twentieth of drift, columns log-normal, sigma 1.5 (in brackets 2.5):
- second moment by a dynamic table (decades with ever fewer bits), to nearest, blocks of 256: 12.6 (56).
  Small ones become 0, and their steps blow up.
- its root as here, but to nearest: 0.87 (0.82); stochastic, independent thresholds: 0.061 (0.31); as here:
  0.051 (0.31)
- its root with five bits of mantissa, eight octaves: 0.47 (0.82): too many lie below the smallest code
- first moment by a dynamic table, blocks of 256: 0.051; beside the root, stochastic: 0.009; as here: 0.006
- both as here: 0.051
On real gradients (`benchmarks/optimiser_real.py`: SmolLM2-135M, APO-zero) 0.029 after 40 steps, where the
made-up ones give 0.036; with float32 moments 0.001. Of the roots 2e-4 lay below the smallest code after
the first step, 1e-5 after ten.

Names: u is the root of the second moment, m the first moment, g the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
MANTISSA = 4
OCTAVES = (1 << (8 - MANTISSA)) - 1  # between the largest exponent of a block and the smallest
DROPPED = 23 - MANTISSA  # bits of a float32 mantissa that a code does not keep

STEEPNESS = 0.5  # A of the first moment's code
LARGEST_RATIO = 8.0
BEND = 1 - STEEPNESS / LARGEST_RATIO  # B: a ratio of LARGEST_RATIO is code 127
LEVELS = 127
TINY = 1e-37  # in place of a zero that is divided by: nothing is 0 of it

GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio
# Numbers that the twin works on at a time: more would only fall out of the processor's caches.
CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Rule:
    """The numbers of one step, counted from 1. `weight_decay` is decoupled in AdamW and added to the
    gradient in RMSprop, as torch's two do; `beta2` is RMSprop's smoothing."""

    adamw: bool
    step: int
    rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float

    @property
    def size(self) -> float:
        """What a ratio of moments is multiplied with: the rate over the first moment's bias correction."""
        return self.rate / (1 - self.beta1**self.step) if self.adamw else self.rate

    @property
    def root_factor(self) -> float:
        """What the root is multiplied with against the bias of its first steps."""
        return 1 / math.sqrt(1 - self.beta2**self.step) if self.adamw else 1.0

    @property
    def decay(self) -> float:
        """AdamW: what weights are multiplied with. RMSprop: the share of the weight in its gradient."""
        return 1 - self.rate * self.weight_decay if self.adamw else self.weight_decay

    @property
    def turn(self) -> int:
        """Where the thresholds of stochastic rounding are in their sequence: an int32."""
        return _signed(self.step * GOLDEN)


@dataclass(frozen=True, slots=True)
class Moments:
    """The moments of one parameter [rows, columns].

    In 8 bits: `mean` int8 and `square` uint8 [rows, columns], `exponents` uint8 [rows, blocks]; in float32
    `exponents` is None. RMSprop has no `mean`.
    """

    mean: Tensor | None
    square: Tensor
    exponents: Tensor | None

    def rows(self, part: slice) -> Moments:
        mean, exponents = (t if t is None else t[part] for t in (self.mean, self.exponents))
        return Moments(mean, self.square[part], exponents)


def blocks(columns: int) -> int:
    """Blocks of a row."""
    return -(-columns // BLOCK)


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 and the int16 that is missing to the float32 `master`; what is not a number stays that, and
    loses its payload."""
    bits = master.contiguous().view(torch.int32)
    high = torch.where(master.isnan(), 0x7FC0, (bits + 0x8000) >> 16)
    low = torch.where(master.isnan(), 0, bits - (high << 16))
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join(weight: Tensor, low: Tensor) -> Tensor:
    """The float32 master of `weight` (bf16) and `low` (int16)."""
    bits = (weight.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)
    return bits.view(torch.float32)


def step(
    weight: Tensor,
    low: Tensor,
    gradient: Tensor,
    moments: Moments,
    scale: Tensor,
    rule: Rule,
    first_row: int = 0,
) -> None:
    """One step, in place: `weight` bf16, `low` int16, `gradient` bf16 or float32, all [rows, columns] and
    contiguous. `scale` (float32, no dimensions) is what the gradient is multiplied with first; `first_row`
    is the place of the first row in the whole parameter, where this is a shard of it."""
    rows, columns = weight.shape
    at_once = max(1, CHUNK // max(1, columns))
    for start in range(0, rows, at_once):
        part = slice(start, min(rows, start + at_once))
        _step(
            weight[part],
            low[part],
            gradient[part].float() * scale,
            moments.rows(part),
            rule,
            first_row + start,
        )


def _step(weight: Tensor, low: Tensor, g: Tensor, moments: Moments, rule: Rule, first_row: int) -> None:
    master = join(weight, low)
    mean, square, exponents = moments.mean, moments.square, moments.exponents
    u = square if exponents is None else decode_root(square, exponents)
    if not rule.adamw:
        g = g + master * rule.decay
    v = (square if exponents is None else u * u) * rule.beta2 + (g * g) * (1 - rule.beta2)
    root = v.double().sqrt().float()  # torch rounds roots of float32 otherwise than to nearest
    if mean is None:
        m, new = g, master
    else:
        m = (mean if exponents is None else decode_mean(mean, u)) * rule.beta1 + g * (1 - rule.beta1)
        new = master * rule.decay
    new = new - m / (root * rule.root_factor + rule.epsilon) * rule.size
    for old, now in zip((weight, low), split(new), strict=True):
        old.copy_(now)
    if exponents is None:
        square.copy_(v)
        if mean is not None:
            mean.copy_(m)
        return
    rows, columns = weight.shape
    codes, largest = encode_root(root, thresholds(rows, columns, first_row, rule.turn, weight.device))
    square.copy_(codes)
    exponents.copy_(largest)
    if mean is not None:
        mean.copy_(encode_mean(m, decode_root(codes, largest)))


def decode_root(codes: Tensor, exponents: Tensor) -> Tensor:
    """Roots [rows, columns], float32, of their `codes` and the `exponents` of their blocks."""
    bits = (codes.to(torch.int32) + _spread(_base(exponents), codes.shape[1])) << DROPPED
    return torch.where(codes == 0, 0.0, bits.view(torch.float32))


def encode_root(root: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (uint8 [rows, columns]) and exponents (uint8 [rows, blocks]) of roots, float32 and not
    negative. `threshold`: int32 below 2**DROPPED, what stochastic rounding adds before it cuts."""
    rows, columns = root.shape
    cut = (root.view(torch.int32) + threshold) >> DROPPED
    padded = torch.nn.functional.pad(cut, (0, blocks(columns) * BLOCK - columns))
    exponents = padded.view(rows, -1, BLOCK).amax(2) >> MANTISSA
    codes = (cut - _spread(_base(exponents), columns)).clamp_(1, 255)
    return torch.where(root > 0, codes, 0).to(torch.uint8), exponents.to(torch.uint8)


def decode_mean(codes: Tensor, u: Tensor) -> Tensor:
    """First moments, float32, of their `codes` (int8) beside roots `u`, as they are stored."""
    x = codes.float() * (1 / LEVELS)
    return u * (x * STEEPNESS / (1 - x.abs() * BEND))


def encode_mean(mean: Tensor, u: Tensor) -> Tensor:
    """Codes (int8) of first moments beside roots `u`, as they are stored."""
    against = u * STEEPNESS + mean.abs() * BEND
    x = mean / against.clamp_min(TINY)
    return (x * LEVELS + 0.5).floor().clamp_(-LEVELS, LEVELS).to(torch.int8)


def thresholds(rows: int, columns: int, first_row: int, turn: int, device: torch.device) -> Tensor:
    """What stochastic rounding of each number adds in this step: int32 [rows, columns], uniform below
    2**DROPPED. (The hash is `lowbias32` of Wellons' hash prospector.)"""
    first = first_row * columns
    place = torch.arange(first, first + rows * columns, device=device).to(torch.int32)
    x = place ^ _shifted(place, 16)
    x = x * _signed(0x7FEB352D)
    x = x ^ _shifted(x, 15)
    x = x * _signed(0x846CA68B)
    x = x ^ _shifted(x, 16)
    return _shifted(x + turn, 32 - DROPPED).view(rows, columns)


def _base(exponents: Tensor) -> Tensor:
    """What the codes of a block count from: its smallest exponent, where the mantissa's bits begin."""
    return (exponents.to(torch.int32) - OCTAVES) << MANTISSA


def _spread(of_blocks: Tensor, columns: int) -> Tensor:
    return of_blocks.repeat_interleave(BLOCK, 1)[:, :columns]


def _shifted(x: Tensor, by: int) -> Tensor:
    """An int32 shifted to the right as if it had no sign."""
    return (x >> by) & ((1 << (32 - by)) - 1)


def _signed(number: int) -> int:
    """The int32 with the lowest 32 bits of `number`."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
