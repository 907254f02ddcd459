"""Attention in Rust against PyTorch's, and the threads that it runs on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import some_pairs, tiny_model
from torch import Tensor, nn

from clair_apo import _core
from clair_apo.errors import ClairError, UsageError
from clair_apo.train import attention
from clair_apo.train.kernels.attention import blocks
from clair_apo.train.kernels.attention import team as teams
from clair_apo.train.load import sharing
from clair_apo.train.options import TrainOptions
from clair_apo.train.packing import Branches, pack
from clair_apo.train.policy import Policy

attention.register()
needs_it = pytest.mark.skipif(
    _core.attention_kernel() is None or teams.team() is None, reason="no AVX2, or no GNU OpenMP"
)

# Both answers; one of them missing; nothing shared; a prefix alone; one token; longer than a chunk.
BRANCHES = (
    Branches(0, 5, 7, 3),
    Branches(15, 4, 6, 0),
    Branches(25, 6, 0, 9),
    Branches(40, 0, 8, 11),
    Branches(59, 0, 0, 4),
    Branches(63, 3, 0, 0),
    Branches(66, 1, 0, 0),
    Branches(67, 30, 140, 95),
)
TOKENS = 332


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random_heads(heads: int, key_heads: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    shapes = [(1, n, TOKENS, size) for n in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def attended(way: Any, tensors: list[Tensor], **settings: Any) -> list[Tensor]:
    out, _ = way(nn.Module(), *tensors, None, branches=BRANCHES, **settings)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]


@needs_it
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(9, 3, 64), (4, 4, 16), (2, 1, 80)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_equals_plain(
    heads: int, key_heads: int, size: int, scaling: float | None, threads: int
) -> None:
    tensors = random_heads(heads, key_heads, size)
    plain = attended(attention.plain, tensors, scaling=scaling)
    found = attended(attention.blocks, tensors, scaling=scaling)
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_it
def test_the_bits_do_not_hang_on_the_threads() -> None:
    found = []
    before = torch.get_num_threads()
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        found.append(attended(attention.blocks, random_heads(4, 2, 32)))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_it
@pytest.mark.parametrize(("kernel", "runs_on"), [("avx2", "avx2"), ("portable", "None")])
def test_the_kernel_that_is_named_is_taken(kernel: str, runs_on: str) -> None:
    code = "from clair_apo import _core; print(_core.attention_kernel())"
    environment = {**os.environ, "CLAIR_APO_KERNEL": kernel}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == runs_on, done.stderr


@needs_it
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Granite"])
def test_a_model_gives_the_same_log_probabilities_and_gradients(family: str, threads: int) -> None:
    results = []
    for name in (attention.PLAIN, attention.BLOCKS):
        model = tiny_model(family)
        model.set_attn_implementation(name)
        loss, *sums = Policy(model)(pack(some_pairs()), lambda chosen, rejected, _: chosen - 0.5 * rejected)
        loss.backward()
        results.append([*sums, *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, theirs in zip(results[1], results[0], strict=True):
        noise = 1e-5 + 2e-5 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=noise)


@needs_it
def test_a_second_derivative_is_refused() -> None:
    tensors = random_heads(2, 2, 16)
    out, _ = attention.blocks(nn.Module(), *tensors, None, branches=BRANCHES)
    first, *_ = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        first.sum().backward()


@needs_it
def test_heads_that_it_cannot_do_are_refused_whatever_the_config_says() -> None:
    query, key, _ = random_heads(2, 2, 16)
    with pytest.raises(ClairError, match=r"heads of 16 and 24 numbers are not possible.*use plain"):
        attention.blocks(nn.Module(), query, key, random_heads(2, 2, 24)[2], None, branches=BRANCHES)


@needs_it
def test_it_is_chosen_where_it_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(family: str = "Llama", attention_name: str = "auto", **changes: Any) -> str:
        model = tiny_model(family, **changes)
        options = TrainOptions(model="m", pairs="p", output_dir="o", attention=attention_name)
        sharing(model, options, 60, torch.device("cpu"))
        name: str = model.config._attn_implementation
        return name

    assert chosen() == attention.BLOCKS
    assert chosen(attention_name="plain") == attention.PLAIN
    assert chosen("Gemma2") == attention.PLAIN
    assert chosen(head_dim=8) == attention.PLAIN
    with pytest.raises(
        UsageError, match=r"blocks is not possible here: .*16 wide, and these are 8; plain is"
    ):
        chosen(attention_name="blocks", head_dim=8)
    with pytest.raises(UsageError, match="soft cap"):
        chosen("Gemma2", attention_name="blocks")
    monkeypatch.setattr(_core, "attention_kernel", lambda: None)
    assert chosen() == attention.PLAIN


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_model("Llama").config
    assert "float32" in str(blocks.unfit(config, torch.bfloat16))
    monkeypatch.setattr(_core, "attention_kernel", lambda: None)
    assert "AVX2" in str(blocks.unfit(config, torch.float32))
    monkeypatch.setattr(_core, "attention_kernel", lambda: "avx2")
    monkeypatch.setattr(blocks, "team", lambda: None)
    assert "OpenMP" in str(blocks.unfit(config, torch.float32))


@needs_it
def test_arrays_of_other_shapes_are_refused() -> None:
    def call(**changes: Any) -> None:
        rows = {name: np.zeros((8, 4, 16), np.float32) for name in ("query", "out")}
        rows |= {name: np.zeros((8, 2, 16), np.float32) for name in ("key", "value")}
        given = {**rows, "lse": np.zeros((4, 8), np.float32), "head": 0, "prefix": (0, 2), "own": (2, 8)}
        _core.attention_forward(**{**given, "scale": 0.25, **changes})

    call()
    for changes, words in (
        ({"key": np.zeros((8, 3, 16), np.float32)}, "value"),
        ({"key": np.zeros((7, 2, 16), np.float32)}, "key has the shape"),
        ({"out": np.zeros((8, 4, 32), np.float32)}, "out has the shape"),
        ({"out": np.zeros((8, 4, 32), np.float32)[:, :, ::2]}, "contiguous"),
        ({"lse": np.zeros((8, 4), np.float32)}, "lse has the shape"),
        ({"head": 4}, "head"),
        ({"own": (2, 9)}, "outside of the rows"),
        ({"prefix": (3, 2)}, "outside of the rows"),
    ):
        with pytest.raises(ValueError, match=words):
            call(**changes)
    with pytest.raises(BufferError):
        call(query=np.zeros((8, 4, 16), np.float64))
    fixed = np.zeros((8, 4, 16), np.float32)
    fixed.setflags(write=False)
    with pytest.raises(ValueError, match="out must be"):
        call(out=fixed)


@needs_it
def test_tasks_run_at_the_same_time_on_pytorchs_threads() -> None:
    team = teams.team()
    assert team is not None
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=60)  # each waits until the other one is there
    team.run([meeting.wait, meeting.wait])
    torch.set_num_threads(before)


@needs_it
def test_a_task_that_fails_is_heard(threads: int) -> None:
    team = teams.team()
    assert team is not None
    done = []

    def fail() -> None:
        raise ClairError("no")

    with pytest.raises(ClairError, match="no"):
        team.run([lambda: done.append(1), fail, lambda: done.append(2)])
    team.run([lambda number=number: done.append(number) for number in range(3, 50)])
    assert sorted(done)[-47:] == list(range(3, 50))
    team.run([])


@needs_it
def test_an_interrupt_that_openmp_swallows_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may pass for done that was not: results would be what lay in memory before."""
    team = teams.team()
    assert team is not None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(team, "_parallel", lambda *_: None)  # it came as each thread began
    with pytest.raises(KeyboardInterrupt):
        team.run([lambda: None] * 4)


def test_pytorchs_own_library_is_found_among_others() -> None:
    own = Path(torch.__file__).parent / "lib" / "libgomp-0.so.1"
    line = "7f00-7f01 r-xp 00000000 fe:00 123                        {}\n"
    other = line.format("/opt/my env/lib/libgomp.so.1")
    assert teams._library("") is None
    assert teams._library(other) == Path("/opt/my env/lib/libgomp.so.1")
    assert teams._library(other + line.format(own)) == own
    assert teams._library(other + line.format("/usr/lib/libgomp.so.1")) is None
