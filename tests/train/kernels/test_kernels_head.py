"""The fused head against its plain twin and against `train/head.py`, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from tiny_models import some_pairs, tiny_model
from torch import Tensor

from clair_apo.train import attention, head
from clair_apo.train.head import PLAIN_HEAD, HeadShape, pair_sums
from clair_apo.train.kernels.head import fused, launch, naive
from clair_apo.train.objectives import OBJECTIVES, Objective, ObjectiveOptions, SequenceLogps, StepFacts
from clair_apo.train.packing import Entries, pack
from clair_apo.train.policy import Policy

SCALED = HeadShape(0.3)
CAPPED = HeadShape(1.7, 5.0)
HALF_ULP = 2**-8  # of bfloat16: the largest relative error of a rounding


@dataclass
class Numbers:
    """Random hidden rows, weight, bias and targets."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]


def numbers(
    rows: int, width: int, vocabulary: int, bias: bool = False, dtype: torch.dtype = torch.float32
) -> Numbers:
    torch.manual_seed(rows + width + vocabulary)
    return Numbers(
        torch.randn(rows, width).to(dtype).requires_grad_(),
        torch.randn(vocabulary, width).to(dtype).requires_grad_(),
        torch.randn(vocabulary).to(dtype).requires_grad_() if bias else None,
        torch.randint(vocabulary, (rows,)),
    )


def same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


# One row, one token, sizes of whole tiles, sizes that are not, rows that begin at odd addresses.
SIZES = [(1, 8, 1), (1, 40, 130), (67, 40, 130), (128, 64, 128), (5, 33, 70)]


@pytest.mark.parametrize("shape", [PLAIN_HEAD, SCALED, CAPPED])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_log_probabilities_and_gradients(sizes: tuple[int, int, int], bias: bool, shape: HeadShape) -> None:
    given = numbers(*sizes, bias)
    upstream = torch.randn(sizes[0])
    expected = naive.token_logps(given.hidden, given.weight, given.targets, given.bias, shape)
    wanted = torch.autograd.grad(expected, given.leaves, upstream)
    found = fused.token_logps(
        given.hidden, given.weight, given.targets, given.bias, shape, slice_columns=96
    )
    got = torch.autograd.grad(found, given.leaves, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    same(got, wanted)


def test_impossible_tokens_and_huge_logits() -> None:
    """A bias of -inf over more than a tile, targets among those tokens, logits beyond 1e5, a row of NaN."""
    given = numbers(9, 40, 200, bias=True)
    assert given.bias is not None
    with torch.no_grad():
        given.bias[:90] = -torch.inf
        given.hidden[:3] *= 1e4
        given.hidden[4] = torch.nan
    given.targets[:] = torch.tensor([100, 3, 150, 199, 5, 70, 91, 90, 89])
    upstream = torch.randn(9)
    expected = naive.token_logps(given.hidden, given.weight, given.targets, given.bias)
    assert expected.isneginf().sum() == 3
    found = fused.token_logps(given.hidden, given.weight, given.targets, given.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    rows = torch.tensor([0, 2, 3, 6, 7])  # what can be trained on
    one = torch.autograd.grad(expected[rows], given.hidden, upstream[rows])[0][rows]
    two = torch.autograd.grad(found[rows], given.hidden, upstream[rows])[0][rows]
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def gradient_of_logits(given: Numbers, shape: HeadShape, coefficients: Tensor) -> Tensor:
    """Of `hidden @ weight.T + bias`, float32 [N, V], from the plain twin."""
    logits = (given.hidden.float() @ given.weight.float().T).detach()
    if given.bias is not None:
        logits += given.bias.detach().float()
    logits.requires_grad_()
    eye = torch.eye(logits.shape[1])
    logps = naive.token_logps(logits, eye, given.targets, None, shape)
    return torch.autograd.grad(logps, logits, coefficients)[0]


def within(found: Tensor, wanted: Tensor, bound: Tensor) -> None:
    error = (found.float() - wanted).abs()
    assert error.max() > 0
    assert bool((error <= bound + 1e-6).all()), float((error / bound).max())


@pytest.mark.parametrize(("shape", "bias"), [(PLAIN_HEAD, False), (CAPPED, True)])
def test_bfloat16_is_within_its_bound(shape: HeadShape, bias: bool) -> None:
    """Log-probabilities are those of float32; a gradient of a logit is rounded once, and what comes of it
    once more."""
    given = numbers(150, 72, 600, bias, torch.bfloat16)
    upstream = torch.randn(150)
    found = fused.token_logps(
        given.hidden, given.weight, given.targets, given.bias, shape, slice_columns=256
    )
    expected = naive.token_logps(given.hidden, given.weight, given.targets, given.bias, shape)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    of_hidden, of_weight, *of_bias = torch.autograd.grad(found, given.leaves, upstream)
    true = gradient_of_logits(given, shape, upstream)
    hidden, weight = given.hidden.detach().float(), given.weight.detach().float()
    once = HALF_ULP * true.abs()
    within(of_hidden, true @ weight, once @ weight.abs() + HALF_ULP * (true @ weight).abs() * 1.01)
    within(of_weight, true.T @ hidden, once.T @ hidden.abs() + HALF_ULP * (true.T @ hidden).abs() * 1.01)
    for found in of_bias:
        within(found, true.sum(0), once.sum(0) + HALF_ULP * true.sum(0).abs() * 1.01)


def entries_of(*counts: tuple[int, int, int]) -> list[Entries]:
    entries, start = [], 0
    for count in counts:
        entries.append(Entries(start, *count))
        start += sum(count)
    return entries


# Shared, chosen and rejected entries: usual pairs, one larger than the rest, answers that are missing.
ENTRIES = entries_of((3, 4, 6), (0, 7, 2), (4, 15, 11), (0, 0, 3), (5, 6, 0), (0, 1, 1))
ROWS = sum(e.total for e in ENTRIES)


def objective(chosen: Tensor, rejected: Tensor, part: slice) -> Tensor:
    """Separable, not linear, and different for each pair."""
    factors = torch.arange(1, 7, dtype=torch.float64)[part]
    return factors * (torch.tanh(chosen / 50) - 0.7 * torch.tanh(rejected / 40))


@pytest.mark.parametrize("shape", [PLAIN_HEAD, SCALED, CAPPED])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 15, 1000])
def test_losses_of_pairs(shape: HeadShape, bias: bool, chunk_rows: int) -> None:
    """In one chunk; in several, with a pair that is larger than one; and all pairs larger than a chunk."""
    given = numbers(ROWS, 40, 130, bias)
    factors = (given.hidden, given.weight, given.targets, ENTRIES, objective, given.bias, shape)
    expected = naive.pair_losses(*factors)
    wanted = torch.autograd.grad(expected[0], given.leaves)
    found = fused.pair_losses(*factors, chunk_bytes=chunk_rows * 4 * 130, slice_columns=96)
    same(torch.autograd.grad(found[0], given.leaves), wanted)
    other = head.pair_losses(*factors)
    for a, b, c in zip(found, expected, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(a, c, rtol=1e-6, atol=1e-5)
    same(torch.autograd.grad(other[0], given.leaves), wanted)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name: str) -> None:
    given = numbers(ROWS, 40, 130)
    loss = Objective(ObjectiveOptions(name, sft_weight=0.0 if name == "sft" else 0.5))
    logps = naive.token_logps(given.hidden, given.weight, given.targets)
    reference = [side.detach() + torch.randn(len(ENTRIES)) for side in pair_sums(logps, ENTRIES)]
    counts = [
        torch.tensor([e.shared * (n > 0) + n for e, n in zip(ENTRIES, side, strict=True)])
        for side in ([e.chosen for e in ENTRIES], [e.rejected for e in ENTRIES])
    ]

    def losses(chosen: Tensor, rejected: Tensor, part: slice) -> Tensor:
        return loss.losses(
            SequenceLogps(chosen, rejected),
            SequenceLogps(reference[0][part], reference[1][part]),
            (counts[0][part], counts[1][part]),
            StepFacts(0.7, 0.2, 5.0),
        )

    factors = (given.hidden, given.weight, given.targets, ENTRIES, losses)
    expected, *_ = naive.pair_losses(*factors)
    found, *_ = fused.pair_losses(*factors, chunk_bytes=40 * 4 * 130)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    same(torch.autograd.grad(found, given.leaves), torch.autograd.grad(expected, given.leaves))


@pytest.mark.parametrize("chunk_rows", [30, 1000])
def test_losses_of_pairs_in_bfloat16_are_within_their_bound(chunk_rows: int) -> None:
    """A gradient of a logit is rounded twice, and the weight's sum once for each of three chunks."""
    given = numbers(ROWS, 72, 600, True, torch.bfloat16)
    assert given.bias is not None
    factors = (given.hidden, given.weight, given.targets, ENTRIES, objective, given.bias, SCALED)
    loss, *sums = fused.pair_losses(*factors, chunk_bytes=chunk_rows * 2 * 600)
    expected, *wanted = naive.pair_losses(*factors)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums, wanted, rtol=1e-6, atol=1e-5)

    logps = naive.token_logps(given.hidden, given.weight, given.targets, given.bias, SCALED)
    logps = logps.detach().requires_grad_()
    value = objective(*pair_sums(logps, ENTRIES), slice(0, len(ENTRIES))).sum()
    true = gradient_of_logits(given, SCALED, torch.autograd.grad(value, logps)[0])
    of_hidden, of_weight, of_bias = torch.autograd.grad(loss, given.leaves)
    hidden, weight = given.hidden.detach().float(), given.weight.detach().float()
    twice = 2.01 * HALF_ULP * true.abs()
    within(of_hidden, true @ weight, twice @ weight.abs() + HALF_ULP * (true @ weight).abs() * 1.01)
    chunks = len(head.groups(ENTRIES, chunk_rows))
    assert chunks == (1 if chunk_rows == 1000 else 3)
    within(of_weight, true.T @ hidden, (twice.T + chunks * HALF_ULP * true.abs().T) @ hidden.abs())
    within(of_bias, true.sum(0), twice.sum(0) + HALF_ULP * true.sum(0).abs() * 1.01)


def test_what_is_kept_at_a_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    empty = launch.aligned_empty

    def noted(like: Tensor, rows: int, columns: int) -> Tensor:
        made.append(rows * columns * like.element_size())
        return empty(like, rows, columns)

    monkeypatch.setattr(launch, "aligned_empty", noted)
    given = numbers(ROWS, 16, 128)
    arguments = (given.hidden, given.weight, given.targets, ENTRIES, objective)
    fused.pair_losses(*arguments, chunk_bytes=30 * 4 * 128)
    assert made
    assert max(made) <= 30 * 4 * 128
    made.clear()
    with torch.no_grad():
        fused.pair_losses(*arguments)
    assert not made


def test_only_what_is_trained_has_a_gradient() -> None:
    given = numbers(ROWS, 40, 130)
    weight = given.weight.detach()
    found, *_ = fused.pair_losses(given.hidden, weight, given.targets, ENTRIES, objective)
    expected, *_ = naive.pair_losses(given.hidden, weight, given.targets, ENTRIES, objective)
    found.backward()
    (wanted,) = torch.autograd.grad(expected, given.hidden)
    assert given.hidden.grad is not None
    same([given.hidden.grad], [wanted])


def test_a_loss_that_is_scaled_afterwards_is_refused() -> None:
    given = numbers(ROWS, 16, 50)
    loss, *_ = fused.pair_losses(given.hidden, given.weight, given.targets, ENTRIES, objective)
    with pytest.raises(RuntimeError):
        (2 * loss).backward()


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Cohere"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_policy_with_the_fused_head(family: str, autocast: torch.dtype | None) -> None:
    """Tied embeddings and a soft cap are Gemma 2's, a scale is Cohere's."""
    attention.register()
    model = tiny_model(family)
    model.set_attn_implementation(attention.PLAIN)
    batch = pack(some_pairs())
    results = []
    for fused_head in (False, True):
        model.zero_grad()
        loss, *sums = Policy(model, autocast=autocast, fused_head=fused_head)(batch, objective)
        loss.backward()
        results.append((loss, sums, {n: p.grad.clone() for n, p in model.named_parameters()}))
    (loss, sums, wanted), (other, others, found) = results
    if autocast is None:
        torch.testing.assert_close(other, loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(others, sums, rtol=1e-6, atol=2e-5)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
        return
    # The plain head rounds logits to bfloat16 first.
    torch.testing.assert_close(others, sums, rtol=2e-2, atol=0.5)
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) <= 0.1 * float(gradient.norm()), name
