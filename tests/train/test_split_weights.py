"""Float32-grade training of bf16 weights: against float32, in checkpoints, with added gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import some_pairs, tiny_model
from torch import Tensor, nn

from clair_apo.train import attention, checkpoint
from clair_apo.train.checkpoint import Checkpoints, Progress
from clair_apo.train.kernels.optimiser import naive
from clair_apo.train.optim import clip_and_step
from clair_apo.train.packing import pack
from clair_apo.train.policy import Policy
from clair_apo.train.split import SplitOptimizer, split_weights


def optimizer_of(model: nn.Module, low: dict[str, Tensor], **changes: Any) -> SplitOptimizer:
    numbers = {"kind": "adamw", "rate": 1e-3, "betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.0}
    return SplitOptimizer(model.named_parameters(), low, **{**numbers, **changes})


def masters(model: nn.Module, optimizer: SplitOptimizer) -> list[Tensor]:
    return [naive.join(p.detach(), optimizer.state[p]["low"]) for p in model.parameters()]


class Layer(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


def steps_of_a_layer(shape: tuple[int, int], steps: int) -> Any:
    """Gradients as a layer has them: rows and columns of other sizes (three decades), a little drift in
    much noise, which gets less in waves as training goes on."""
    rng = torch.Generator().manual_seed(1)
    rows, columns = (torch.randn(n, generator=rng) for n in ((shape[0], 1), (1, shape[1])))
    size = 1e-5 * torch.exp(0.7 * rows + 1.5 * columns + 0.5 * torch.randn(shape, generator=rng))
    drift = 0.05 * torch.randn(shape, generator=rng)
    for step in range(steps):
        wave = math.exp(-2 * step / steps) * (0.3 + 0.7 * abs(math.sin(step / 300)))
        yield (size * (torch.randn(shape, generator=rng) + drift) * wave).bfloat16()


@pytest.mark.timeout(900)  # half a minute where nothing else runs
def test_ten_thousand_small_steps_follow_float32_and_bare_bf16_does_not() -> None:
    """docs/training.md: at a rate of 2e-7, the way that weights went is AdamW's in float32 to 8%."""
    shape, rate, steps = (16, 256), 2e-7, 10_000
    start = 0.03 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact, ours, bare = Layer(start), Layer(start), Layer(start.bfloat16())
    optimizer = optimizer_of(ours, split_weights(ours), rate=rate)
    assert optimizer.state[ours.weight]["exp_avg"].dtype == torch.int8
    theirs, plain = (torch.optim.AdamW(m.parameters(), lr=rate, weight_decay=0.0) for m in (exact, bare))
    for gradient in steps_of_a_layer(shape, steps):
        exact.weight.grad, ours.weight.grad, bare.weight.grad = gradient.float(), gradient, gradient
        for each in (theirs, optimizer, plain):
            each.step()
    went = exact.weight.detach() - start
    (master,) = masters(ours, optimizer)
    assert torch.equal(ours.weight.detach().float(), naive.split(master)[0].float())

    def off(weight: Tensor, begin: Tensor) -> float:
        return float((weight - begin - went).norm() / went.norm())

    assert went.abs().mean() > 100 * rate
    assert off(master, start) < 0.08
    assert abs(float((master - start).norm() / went.norm()) - 1) < 0.02
    # Most weights of the bare form have not moved at all.
    assert float((bare.weight.detach() != start.bfloat16()).float().mean()) < 0.05
    assert off(bare.weight.detach().float(), start.bfloat16().float()) > 0.9


def test_low_bits_of_float32_weights_are_kept_and_buffers_stay() -> None:
    model = tiny_model("Llama")
    before = [p.detach().clone() for p in model.parameters()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    low = split_weights(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    found = masters(model, optimizer_of(model, low))
    assert all(torch.equal(a, b) for a, b in zip(before, found, strict=True))
    for name, buffer in model.named_buffers():
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name])
    # Norms start at 1, which bf16 has.
    assert not any("norm" in name for name in low)
    again = tiny_model("Llama").bfloat16().float()
    assert split_weights(again) == {}


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
@pytest.mark.parametrize("coded", [True, False], ids=["8-bit", "float32"])
def test_checkpoints_come_back_bit_by_bit(tmp_path: Path, kind: str, coded: bool) -> None:
    def made(seed: int) -> tuple[Any, SplitOptimizer]:
        model = tiny_model("Llama")
        optimizer = optimizer_of(model, split_weights(model), kind=kind, coded=coded)
        step(model, optimizer, seed)
        return model, optimizer

    def step(model: Any, optimizer: SplitOptimizer, seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    model, optimizer = made(1)
    path = Checkpoints(tmp_path, limit=2).save(Progress(1, 0, 0.0), model, optimizer, {})
    other, state = made(2)
    checkpoint.load(path, other, state)
    for turn in range(2):
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
            assert optimizer.state[a].keys() == state.state[b].keys()
            for name, value in optimizer.state[a].items():
                assert value.dtype == state.state[b][name].dtype
                assert torch.equal(value, state.state[b][name]), name
        step(model, optimizer, turn)
        step(other, state, turn)


def test_tied_weights_are_stepped_once() -> None:
    model = tiny_model("Llama", tie_word_embeddings=True)
    low = split_weights(model)
    shared = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is shared
    assert sum("embed_tokens" in name or "lm_head" in name for name in low) == 1
    optimizer = optimizer_of(model, low)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = naive.join(shared.detach(), optimizer.state[shared]["low"])
    optimizer.step()
    moved = before - naive.join(shared.detach(), optimizer.state[shared]["low"])
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("largest", [0.5, 1e9])
def test_clipping_is_torchs(largest: float) -> None:
    model = tiny_model("Llama")
    torch.manual_seed(0)
    gradients = [torch.randn_like(p).bfloat16() for p in model.parameters()]
    optimizer = optimizer_of(model, split_weights(model), coded=False)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    norm = clip_and_step(optimizer, model.parameters(), largest)
    exact = [nn.Parameter(torch.zeros(g.shape)) for g in gradients]
    for parameter, gradient in zip(exact, gradients, strict=True):
        parameter.grad = gradient.float()
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(exact, largest), rtol=1e-6, atol=0)
    for parameter, clipped in zip(model.parameters(), exact, strict=True):
        found = optimizer.state[parameter]["exp_avg"]
        torch.testing.assert_close(found, 0.1 * clipped.grad, rtol=1e-5, atol=1e-12)


def test_small_parameters_keep_float32_moments() -> None:
    model = tiny_model("Llama")
    optimizer = optimizer_of(model, split_weights(model))
    for name, parameter in model.named_parameters():
        coded = parameter.ndim > 1 and parameter.numel() >= 4096
        assert optimizer.state[parameter]["exp_avg_sq"].dtype == (torch.uint8 if coded else torch.float32)
        assert ("exponents" in optimizer.state[parameter]) == coded, name


def test_gradients_added_in_bf16_are_within_the_stated_bound() -> None:
    """docs/training.md: against float32 sums of the same gradients, m microbatches are off by less than
    half of sqrt(m) x 2**-8."""
    attention.register()
    pairs = some_pairs() * 3
    model = tiny_model("Llama").bfloat16()
    model.set_attn_implementation(attention.PLAIN)
    policy = Policy(model)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        for parameter in policy.parameters():
            parameter.grad, parameter.grad_dtype = None, dtype
        for number, pair in enumerate(pairs):
            weight = (1.0, -0.7)[number % 2]
            policy(pack([pair]), lambda c, r, _, w=weight: w * (c - 0.9 * r))[0].backward()
        found[dtype] = [p.grad.float() for p in policy.parameters()]
    for a, b in zip(*found.values(), strict=True):
        assert 0 < float((a - b).norm() / b.norm()) < math.sqrt(len(pairs)) * 2**-8 / 2
