"""The optimiser's pass: formats, and the kernel against its plain twin in Triton's interpreter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from clair_apo.train.kernels.optimiser import fused, naive
from clair_apo.train.kernels.optimiser.naive import BLOCK, Moments, Rule

RULE = {"rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}
ALL_BUT_A_FEW = torch.arange(-(2**31), 2**31, 16381)
SPECIAL = [0, 1, 0x7FFF, 0x8000, 0x18000, 0x7FFFFF, 0x800000, 0x3F808000, 0x3F818000, 0x7F7F8000]
SPECIAL += [0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]


def test_weight_and_low_bits_are_the_exact_master() -> None:
    """All classes: zeros, subnormal ones, ties, the largest, infinite ones; no number stays none."""
    special = torch.tensor(SPECIAL)
    bits = torch.cat([ALL_BUT_A_FEW, special, special - 2**31]).to(torch.int32)
    master = bits.view(torch.float32)
    weight, low = naive.split(master)
    again = naive.join(weight, low)
    there = ~master.isnan()
    assert torch.equal(again.view(torch.int32)[there], bits[there])
    assert torch.equal(weight.isnan(), master.isnan())
    # To nearest: what is left is at most half of what two bf16 numbers lie apart, ties away from zero.
    ties = (bits & 0xFFFF) == 0x8000
    same = weight.view(torch.int16) == master.bfloat16().view(torch.int16)
    assert same[there & ~ties].all()
    assert (weight.float().abs() >= master.abs())[there & ties].all()


def test_bf16_weights_lack_nothing() -> None:
    master = torch.randn(1000).bfloat16().float()
    weight, low = naive.split(master)
    assert torch.equal(weight.float(), master)
    assert not low.any()


def test_roots_are_rounded_without_a_bias_and_never_to_nothing() -> None:
    root = torch.rand(4, 300) * torch.exp2(torch.randint(-14, 0, (4, 300)).float())
    root[:, ::BLOCK] = 1.0
    root[2, 5], root[2, 6], root[3, 7] = 1e-30, 1e-20, 0.0
    found = []
    for step in range(1, 2001):
        turn = Rule(True, step, **RULE).turn
        threshold = naive.thresholds(4, 300, 7, turn, root.device)
        assert 0 <= int(threshold.min()) <= int(threshold.max()) < 1 << naive.DROPPED
        found.append(naive.decode_root(*naive.encode_root(root, threshold)))
    all_of_them = torch.stack(found)
    inside = root >= 2.0**-15 * 1.07
    distance = ((all_of_them - root) / root).abs().amax(0)
    assert distance[inside].max() <= 2**-naive.MANTISSA
    bias = (all_of_them.double().mean(0) - root) / root
    assert bias[inside].abs().max() < 2**-naive.MANTISSA / 100  # a Weyl sequence: 1/n, not 1/sqrt(n)
    assert (all_of_them[:, 2, 5:7] > root[2, 5:7]).all()  # too small for the block: up, not to zero
    assert (all_of_them[:, 3, 7] == 0).all()


def test_first_moments_come_back_within_their_bound() -> None:
    u = torch.full((1, 40001), 1e-6)
    ratio = torch.linspace(-8, 8, 40001)[None]
    got = naive.decode_mean(naive.encode_mean(u * ratio, u), u) / u
    # Half a code: (A + B r)^2 / A / 127 / 2.
    bound = (naive.STEEPNESS + naive.BEND * ratio.abs()) ** 2 / naive.STEEPNESS / naive.LEVELS / 2
    assert ((got - ratio).abs() <= bound * 1.1).all()
    assert naive.encode_mean(torch.tensor([[1.0, -1.0, 0.0]]), torch.zeros(1, 3)).tolist() == [
        [127, -127, 0]
    ]
    assert not naive.decode_mean(torch.tensor([[127]], dtype=torch.int8), torch.zeros(1, 1)).any()


def start(rows: int, columns: int, *, adamw: bool, coded: bool) -> tuple[Tensor, Tensor, Moments]:
    torch.manual_seed(rows * columns)
    weight, low = naive.split(torch.randn(rows, columns) * 0.02)
    kinds = (torch.int8, torch.uint8) if coded else (torch.float32, torch.float32)
    mean, square = (torch.zeros(rows, columns, dtype=kind) for kind in kinds)
    exponents = torch.zeros(rows, naive.blocks(columns), dtype=torch.uint8) if coded else None
    return weight, low, Moments(mean if adamw else None, square, exponents)


def tensors(state: tuple[Tensor, Tensor, Moments]) -> list[Tensor]:
    weight, low, moments = state
    found = [weight.view(torch.int16), low, moments.mean, moments.square, moments.exponents]
    return [t for t in found if t is not None]


def gradients(rows: int, columns: int, dtype: Any, steps: int) -> list[Tensor]:
    """Over eight decades, with an outlier, a row and a step of zeros."""
    torch.manual_seed(columns)
    found = [
        1e-5 * torch.randn(rows, columns) * torch.exp(3 * torch.randn(1, columns)) for _ in range(steps)
    ]
    for gradient in found:
        gradient[-1] = 0
        gradient[0, 0] = 1e4
    found[2][:] = 0
    return [gradient.to(dtype) for gradient in found]


@pytest.mark.parametrize("coded", [True, False], ids=["8-bit", "float32"])
@pytest.mark.parametrize("adamw", [True, False], ids=["adamw", "rmsprop"])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (1, BLOCK), (3, BLOCK + 1), (5, 300), (33, 7), (1, 2500)]
)
def test_the_kernel_equals_its_twin_bit_by_bit(rows: int, columns: int, adamw: bool, coded: bool) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        plain = start(rows, columns, adamw=adamw, coded=coded)
        quick = copy.deepcopy(plain)
        for number, gradient in enumerate(gradients(rows, columns, dtype, 5)):
            rule, scale = Rule(adamw, number + 1, **RULE), torch.tensor(0.37)
            naive.step(plain[0], plain[1], gradient, plain[2], scale, rule, 3)
            fused.step(quick[0], quick[1], gradient, quick[2], scale, rule, 3)
            for a, b in zip(tensors(plain), tensors(quick), strict=True):
                assert torch.equal(a, b)
        assert not torch.equal(plain[1], start(rows, columns, adamw=adamw, coded=coded)[1])


@pytest.mark.parametrize("step", [naive.step, fused.step], ids=["plain", "fused"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_none_makes_a_weight_that_is_none(step: Any, bad: float) -> None:
    """Never a zero that nobody notices."""
    state = start(2, 5, adamw=True, coded=False)
    gradient = torch.full((2, 5), 1e-3)
    gradient[1, 2] = bad
    step(state[0], state[1], gradient, state[2], torch.ones(()), Rule(True, 1, **RULE))
    assert state[0].isnan().tolist() == [[False] * 5, [False, False, True, False, False]]


@pytest.mark.parametrize("step", [naive.step, fused.step], ids=["plain", "fused"])
def test_a_shard_steps_as_its_rows_of_the_whole_do(step: Any) -> None:
    whole = start(9, 200, adamw=True, coded=True)
    parts = [slice(0, 4), slice(4, 9), slice(9, 9)]
    shards = [
        (whole[0][part].clone(), whole[1][part].clone(), copy.deepcopy(whole[2].rows(part)))
        for part in parts
    ]
    for number, gradient in enumerate(gradients(9, 200, torch.bfloat16, 4)):
        rule, scale = Rule(True, number + 1, **RULE), torch.ones(())
        step(whole[0], whole[1], gradient, whole[2], scale, rule)
        for part, shard in zip(parts, shards, strict=True):
            step(shard[0], shard[1], gradient[part].contiguous(), shard[2], scale, rule, part.start)
    for place, tensor in enumerate(tensors(whole)):
        assert torch.equal(tensor, torch.cat([tensors(shard)[place] for shard in shards]))


def test_what_the_twin_works_on_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [start(9, 200, adamw=True, coded=True) for _ in range(2)]
    for state, chunk in zip(states, (1 << 18, 500), strict=True):
        monkeypatch.setattr(naive, "CHUNK", chunk)
        for number, gradient in enumerate(gradients(9, 200, torch.float32, 3)):
            naive.step(
                state[0], state[1], gradient, state[2], torch.ones(()), Rule(True, number + 1, **RULE)
            )
    for a, b in zip(*map(tensors, states), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("adamw", [True, False], ids=["adamw", "rmsprop"])
def test_with_float32_moments_it_is_torchs_own_optimiser(adamw: bool) -> None:
    """On float32 weights, to the last bits of a step."""
    weight, low, moments = start(8, 200, adamw=adamw, coded=False)
    theirs = torch.nn.Parameter(naive.join(weight, low))
    before = theirs.detach().clone()
    numbers = {"lr": RULE["rate"], "eps": RULE["epsilon"], "weight_decay": RULE["weight_decay"]}
    optimizer = (
        torch.optim.AdamW([theirs], betas=(0.9, 0.999), **numbers)
        if adamw
        else torch.optim.RMSprop([theirs], alpha=0.999, **numbers)
    )
    for number, gradient in enumerate(gradients(8, 200, torch.float32, 20)):
        naive.step(weight, low, gradient, moments, torch.ones(()), Rule(adamw, number + 1, **RULE))
        theirs.grad = gradient
        optimizer.step()
    ours, moved = naive.join(weight, low), (theirs - before).abs()
    assert moved.max() > 1e-2
    torch.testing.assert_close(ours, theirs.detach(), rtol=3e-6, atol=1e-8)
