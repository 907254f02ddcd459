"""RMSNorm, RoPE and gated units as kernels, against the same in plain torch.

Triton's interpreter cuts numbers off where it makes them bfloat16, in place of rounding them; float16 it
rounds. So bfloat16 is held to a bound here, and float16 shows that kernels round where the modules do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clair_apo.errors import ClairError
from clair_apo.train.kernels.layers import naive, norm, rope, swiglu
from clair_apo.train.kernels.layers.naive import GEMMA, LLAMA, OLMO2, NormForm

FLOAT, BRIEF, HALF = torch.float32, torch.bfloat16, torch.float16
FORMS = {"llama": LLAMA, "gemma": GEMMA, "olmo2": OLMO2}


def both(
    kernel: Callable[..., Any], plain: Callable[..., Any], leaves: list[Tensor], *others: Any
) -> list[tuple[Tensor, Tensor]]:
    """Results and gradients of both, in pairs. The upstream gradients are random."""
    found = []
    for function in (kernel, plain):
        own = [leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
        out = function(*own, *others)
        out = out if isinstance(out, tuple) else (out,)
        torch.manual_seed(5)
        upstream = [torch.randn(x.shape).to(x.dtype) for x in out]
        found.append([*out, *torch.autograd.grad(out, own, upstream)])
    return list(zip(*found, strict=True))


def assert_equal(
    pairs: list[tuple[Tensor, Tensor]], roundings: float = 4, coarsest: torch.dtype = FLOAT
) -> None:
    """Within so many roundings of the largest number of a tensor, to its dtype or the coarsest inside."""
    for found, wanted in pairs:
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        # Of a row of one number next to nothing is left.
        largest = max(float(wanted.detach().abs().max()), 0.01)
        rounding = max(torch.finfo(dtype).eps for dtype in (wanted.dtype, coarsest))
        bound = roundings * rounding * largest
        torch.testing.assert_close(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("of_x", "of_weight"), [(FLOAT, FLOAT), (BRIEF, BRIEF), (BRIEF, FLOAT), (HALF, HALF), (HALF, FLOAT)]
)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 64), (3, 2, 4, 100), (300, 33), (2, 4097)])
def test_norm(form: NormForm, of_x: torch.dtype, of_weight: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(shape)).to(of_x)
    weight = torch.randn(shape[-1]).to(of_weight)
    assert_equal(both(norm.rms_norm, naive.rms_norm, [x, weight], 1e-5, form), 8, of_x)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_norm_rounds_where_the_module_does(form: NormForm) -> None:
    """The forms are told apart by where they round: the very same numbers come out."""
    torch.manual_seed(1)
    x, weight = torch.randn(64, 96).to(HALF), torch.randn(96).to(HALF)
    found = norm.rms_norm(x, weight, 1e-6, form)
    differ = {name: int((found != naive.rms_norm(x, weight, 1e-6, f)).sum()) for name, f in FORMS.items()}
    own = next(name for name, f in FORMS.items() if f == form)
    assert differ.pop(own) == 0
    assert min(differ.values()) > 50


def test_norm_of_rows_of_zeros_huge_numbers_and_gaps() -> None:
    x = torch.stack(
        [torch.zeros(10), torch.full((10,), 1e18), torch.full((10,), 1e-30), torch.arange(10.0)]
    )
    assert_equal(both(norm.rms_norm, naive.rms_norm, [x, torch.arange(10.0)], 1e-6, LLAMA), 8)
    apart = torch.randn(6, 20)[::2, ::2]  # rows and numbers that do not lie side by side
    assert_equal(both(norm.rms_norm, naive.rms_norm, [apart, torch.ones(10)], 1e-6, LLAMA), 8)
    assert norm.rms_norm(torch.randn(0, 10), torch.ones(10), 1e-6).shape == (0, 10)
    with pytest.raises(ClairError, match="8193 numbers"):
        norm.rms_norm(torch.randn(1, 8193), torch.ones(8193), 1e-6)


def test_a_row_that_is_no_number_spoils_no_other() -> None:
    x = torch.randn(8, 12)
    x[3, 4] = math.nan
    found = norm.rms_norm(x, torch.ones(12), 1e-6)
    assert found.isnan().any(1).tolist() == [row == 3 for row in range(8)]


def test_norm_without_a_gradient_of_the_weight() -> None:
    x, weight = torch.randn(9, 12, requires_grad=True), torch.randn(12)
    found = torch.autograd.grad(norm.rms_norm(x, weight, 1e-6).sum(), x)
    wanted = torch.autograd.grad(naive.rms_norm(x, weight, 1e-6, LLAMA).sum(), x)
    torch.testing.assert_close(found, wanted)


def test_the_gradient_of_the_weight_is_the_same_each_time() -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(500, 40), torch.randn(40, requires_grad=True)
    upstream = torch.randn(500, 40)
    first, second = (
        torch.autograd.grad(norm.rms_norm(x, weight, 1e-6), weight, upstream)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def angles(batch: int, tokens: int, size: int, *, halves: bool = True) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions that restart."""
    place = torch.cat([torch.arange(tokens - tokens // 3), torch.arange(tokens // 3)]).float()
    angle = place[:, None] / 100 ** (torch.arange(size // 2) / size)
    angle = torch.cat([angle, angle if halves else 1 - angle], dim=1).expand(batch, -1, -1)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize(
    ("of_q", "of_cos"), [(FLOAT, FLOAT), (BRIEF, BRIEF), (BRIEF, FLOAT), (HALF, HALF), (HALF, FLOAT)]
)
@pytest.mark.parametrize(
    ("batch", "heads", "key_heads", "tokens", "size"),
    [(1, 1, 1, 1, 2), (1, 4, 2, 11, 16), (2, 9, 3, 5, 64), (1, 17, 1, 3, 96)],
)
def test_rope(
    of_q: torch.dtype,
    of_cos: torch.dtype,
    batch: int,
    heads: int,
    key_heads: int,
    tokens: int,
    size: int,
) -> None:
    torch.manual_seed(3)
    q, k = (torch.randn(batch, tokens, n, size).to(of_q).transpose(1, 2) for n in (heads, key_heads))
    cos, sin = (x.to(of_cos) for x in angles(batch, tokens, size))
    pairs = both(rope.rotate, naive.rotate, [q, k], cos, sin)
    assert_equal(pairs, 0 if (of_q, of_cos) == (HALF, HALF) else 4)


def test_rope_of_other_layouts_and_angles() -> None:
    torch.manual_seed(4)
    leaves = [torch.randn(2, 3, 7, 8), torch.randn(2, 1, 7, 8)]
    assert_equal(both(rope.rotate, naive.rotate, leaves, *angles(1, 7, 8)))  # one set of angles for all
    assert_equal(both(rope.rotate, naive.rotate, leaves, *angles(2, 7, 8, halves=False)))
    apart = [torch.randn(2, 8, 7, 3).transpose(1, 3), torch.randn(2, 8, 7, 1).transpose(1, 3)]
    assert_equal(both(rope.rotate, naive.rotate, apart, *angles(2, 7, 8)))
    assert [x.shape[2] for x in rope.rotate(*(x[:, :, :0] for x in leaves), *angles(2, 0, 8))] == [0, 0]


def test_the_way_back_undoes_a_turn() -> None:
    q, k = torch.randn(1, 2, 6, 8, requires_grad=True), torch.randn(1, 2, 6, 8, requires_grad=True)
    turned = rope.rotate(q, k, *angles(1, 6, 8))
    back = torch.autograd.grad(turned, (q, k), turned)
    torch.testing.assert_close(back, (q, k))


@pytest.mark.parametrize("spoilt", ["key size", "angle size", "tokens", "odd"])
def test_rope_of_shapes_that_do_not_fit_is_refused(spoilt: str) -> None:
    size = 7 if spoilt == "odd" else 8
    q = torch.randn(1, 2, 6, size)
    k = q[..., :4] if spoilt == "key size" else q
    cos, sin = torch.ones(2, 1, 5 if spoilt == "tokens" else 6, 4 if spoilt == "angle size" else size)
    with pytest.raises(ValueError, match=r"cannot be turned|are not those"):
        rope.rotate(q, k, cos, sin)


@pytest.mark.parametrize("activation", swiglu.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [FLOAT, BRIEF, HALF])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 700)])
def test_gated(activation: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(6)
    leaves = [(4 * torch.randn(shape)).to(dtype) for _ in range(2)]
    pairs = both(swiglu.gated, naive.gated, leaves, activation)
    if dtype == HALF and activation == "silu":
        assert torch.equal(*pairs[0])  # rounded where the modules round
    assert_equal(pairs, 8)


@pytest.mark.parametrize("activation", swiglu.ACTIVATIONS)
def test_gated_at_its_ends(activation: str) -> None:
    gate = torch.tensor([0.0, -0.0, 90.0, -90.0, 1e4, -1e4, 1e-20, 20.0, -20.0])
    assert_equal(both(swiglu.gated, naive.gated, [gate, torch.linspace(-2, 2, 9)], activation))
    apart = [torch.randn(6, 8)[:, ::2], torch.randn(4, 6).T]
    assert_equal(both(swiglu.gated, naive.gated, apart, activation))
    assert swiglu.gated(gate[:0], gate[:0], activation).shape == (0,)


def test_a_gate_of_another_shape_or_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="a gate"):
        swiglu.gated(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="relu is none of silu, gelu-tanh"):
        swiglu.gated(torch.zeros(2), torch.zeros(2), "relu")


def test_the_plain_forms_are_what_their_definitions_say() -> None:
    torch.manual_seed(7)
    x, weight = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    by_hand = torch.stack([row / math.sqrt(sum(v * v for v in row.tolist()) / 6 + 1e-6) for row in x])
    wide = naive.rms_norm(x.float(), weight.float(), 1e-6, LLAMA)
    torch.testing.assert_close(wide, (by_hand * weight).float())
    torch.testing.assert_close(
        naive.rms_norm(x.float(), weight.float(), 1e-6, GEMMA), (by_hand * (1 + weight)).float()
    )
    # A turn is a product of complex numbers.
    q = torch.randn(1, 2, 5, 8)
    cos, sin = angles(1, 5, 8)
    turned, _ = naive.rotate(q, q, cos, sin)
    wanted = torch.complex(q[..., :4], q[..., 4:]) * torch.complex(cos[..., :4], sin[..., :4])[:, None]
    torch.testing.assert_close(turned, torch.cat([wanted.real, wanted.imag], dim=-1))
