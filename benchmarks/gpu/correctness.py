"""Every kernel against its plain twin on the device, and the attention paths against each other.

Shapes are random and awkward: one row, one token, sizes that are no multiple of a tile. What is compared
is the norm of the difference over the norm of the truth (`common.close`), in bf16 against a truth in
float32 from the same bf16 numbers, and in float32. Gradients are compared as values are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from common import DEVICE, SMALL, Missing, Part, close, needs, part

# Two roundings of bf16 (2**-9 each) that do not cancel, and float32 sums of a few thousand terms.
BF16, FLOAT32 = 8e-3, 2e-5
DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BF16}


def main() -> None:
    with part("correctness") as found:
        torch.manual_seed(0)
        head(found)
        layers(found)
        optimiser(found)
        attention(found)


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, device=DEVICE)).to(dtype)


def compared(
    ours: Callable[..., Any], truth: Callable[..., Any], inputs: list[torch.Tensor], relative: float
) -> str:
    """Values of both functions, and gradients with regard to `inputs` of a random sum of them; the truth
    gets float32."""
    own = [x.detach().clone().requires_grad_() for x in inputs]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    found, expected = ours(*own), truth(*wide)
    found = found if isinstance(found, tuple) else (found,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    said, upstream = [], []
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        said.append(close(f"value {number}", a, b, relative))
        upstream.append(torch.randn_like(b))
    gradients = torch.autograd.grad(
        found, own, [u.to(a.dtype) for u, a in zip(upstream, found, strict=True)]
    )
    truths = torch.autograd.grad(expected, wide, upstream)
    for number, (a, b) in enumerate(zip(gradients, truths, strict=True)):
        said.append(close(f"gradient {number}", a, b, 2 * relative))
    return max(said, key=lambda text: float(text.rpartition(" ")[2]))


def head(found: Part) -> None:
    shapes = [(1, 64, 97), (37, 72, 517), (70, 64, 1031)]
    shapes += [] if SMALL else [(1, 4096, 128_256), (777, 2048, 49_153), (2048, 4096, 128_256)]
    for (rows, hidden, vocabulary), (dtype, relative) in itertools.product(shapes, DTYPES.items()):

        def check(
            n: int = rows, h: int = hidden, v: int = vocabulary, d: Any = dtype, r: float = relative
        ) -> str:
            fused = needs("clair_apo.train.kernels.head.fused")
            naive = needs("clair_apo.train.kernels.head.naive")
            targets = torch.randint(v, (n,), device=DEVICE)
            inputs = [random(n, h, dtype=d), random(v, h, dtype=d, scale=h**-0.5)]
            return compared(
                lambda x, w: fused.token_logps(x, w, targets),
                lambda x, w: naive.token_logps(x, w, targets),
                inputs,
                r,
            )

        def pairs(
            n: int = rows, h: int = hidden, v: int = vocabulary, d: Any = dtype, r: float = relative
        ) -> str:
            fused = needs("clair_apo.train.kernels.head.fused")
            naive = needs("clair_apo.train.kernels.head.naive")
            from clair_apo.train.packing import Entries

            targets = torch.randint(v, (n,), device=DEVICE)
            third = n // 3
            entries = [Entries(0, 0, third, n - 2 * third), Entries(n - third, third, 0, 0)][
                : 1 + (third > 0)
            ]

            def losses(chosen: Any, rejected: Any, _: slice) -> Any:
                return torch.sigmoid(0.1 * (rejected - chosen)) - 0.01 * chosen

            inputs = [random(n, h, dtype=d), random(v, h, dtype=d, scale=h**-0.5)]
            own = [x.detach().clone().requires_grad_() for x in inputs]
            wide = [x.detach().float().requires_grad_() for x in inputs]
            loss = fused.pair_losses(own[0], own[1], targets, entries, losses)[0]
            truth = naive.pair_losses(wide[0], wide[1], targets, entries, losses)[0]
            said = [close("loss", loss, truth, r)]
            loss.backward()
            truth.backward()
            # Chunks round sums and probabilities once more than the form by tokens.
            said += [close(f"gradient {i}", own[i].grad, wide[i].grad, 2 * r) for i in range(2)]
            return ", ".join(said)

        name = f"{rows} x {hidden} x {vocabulary} {str(dtype).removeprefix('torch.')}"
        found.check(f"head, tokens: {name}", check)
        found.check(f"head, pairs: {name}", pairs)


def layers(found: Part) -> None:
    widths = [(1, 64), (5, 96), (33, 576)] + ([] if SMALL else [(4096, 4096), (4099, 128)])
    for (rows, width), (dtype, relative) in itertools.product(widths, DTYPES.items()):

        def norm(n: int = rows, w: int = width, d: Any = dtype, r: float = relative) -> str:
            fused = needs("clair_apo.train.kernels.layers.norm")
            naive = needs("clair_apo.train.kernels.layers.naive")
            said = ""
            for form in (naive.LLAMA, naive.GEMMA, naive.OLMO2):
                said = compared(
                    lambda x, g, f=form: fused.rms_norm(x, g, 1e-5, f),
                    lambda x, g, f=form: naive.rms_norm(x, g, 1e-5, f),
                    [random(n, w, dtype=d), random(w, dtype=d)],
                    r,
                )
            return said

        def gate(n: int = rows, w: int = width, d: Any = dtype, r: float = relative) -> str:
            fused = needs("clair_apo.train.kernels.layers.swiglu")
            naive = needs("clair_apo.train.kernels.layers.naive")
            said = ""
            for kind in ("silu", "gelu-tanh"):
                said = compared(
                    lambda g, u, k=kind: fused.gated(g, u, k),
                    lambda g, u, k=kind: naive.gated(g, u, k),
                    [random(n, w, dtype=d), random(n, w, dtype=d)],
                    r,
                )
            return said

        name = f"{rows} x {width} {str(dtype).removeprefix('torch.')}"
        found.check(f"RMSNorm: {name}", norm)
        found.check(f"SwiGLU, GEGLU: {name}", gate)
    for (heads, keys, tokens, size), (dtype, relative) in itertools.product(
        [(4, 2, 1, 16), (9, 3, 37, 64)] + ([] if SMALL else [(32, 8, 4096, 128)]), DTYPES.items()
    ):

        def rope(
            h: int = heads,
            k: int = keys,
            t: int = tokens,
            s: int = size,
            d: Any = dtype,
            r: float = relative,
        ) -> str:
            fused = needs("clair_apo.train.kernels.layers.rope")
            naive = needs("clair_apo.train.kernels.layers.naive")
            angles = torch.rand(1, t, s // 2, device=DEVICE) * 6
            cos, sin = (torch.cat([f(angles)] * 2, -1).to(d) for f in (torch.cos, torch.sin))
            return compared(
                lambda q, k: fused.rotate(q, k, cos, sin),
                lambda q, k: naive.rotate(q, k, cos.float(), sin.float()),
                [random(1, h, t, s, dtype=d), random(1, k, t, s, dtype=d)],
                r,
            )

        name = f"{heads} and {keys} heads, {tokens} tokens {str(dtype).removeprefix('torch.')}"
        found.check(f"RoPE: {name}", rope)


def optimiser(found: Part) -> None:
    """Compiled, a step may differ from its twin by contracted products, and a code by one where it lay on
    an edge."""
    shapes = [(1, 1), (3, 130), (17, 300)] + ([] if SMALL else [(4096, 4096), (128, 14_336)])
    for (rows, columns), adamw in itertools.product(shapes, (True, False)):

        def check(n: int = rows, m: int = columns, adamw: bool = adamw) -> str:
            fused = needs("clair_apo.train.kernels.optimiser.fused")
            naive = needs("clair_apo.train.kernels.optimiser.naive")
            master = torch.randn(n, m, device=DEVICE) * 0.02
            ours, truth = (State(naive, master, adamw) for _ in range(2))
            for step in range(1, 4):
                gradient = random(n, m, dtype=torch.bfloat16, scale=0.01)
                scale = torch.tensor(0.7, device=DEVICE)
                rule = naive.Rule(adamw, step, 1e-3, 0.9, 0.999, 1e-8, 0.01)
                fused.step(ours.weight, ours.low, gradient, ours.moments, scale, rule)
                naive.step(truth.weight, truth.low, gradient, truth.moments, scale, rule)
            moved = (truth.master() - master, ours.master() - master)
            return close("three steps", moved[1], moved[0], 1e-3)

        found.check(f"{'AdamW' if adamw else 'RMSprop'} step: {rows} x {columns}", check)


class State:
    """A parameter and its moments in 8 bits."""

    def __init__(self, naive: Any, master: torch.Tensor, adamw: bool) -> None:
        self.naive = naive
        self.weight, self.low = naive.split(master)
        byte = {"dtype": torch.uint8, "device": DEVICE}
        blocks = torch.zeros(len(master), naive.blocks(master.shape[1]), **byte)
        mean = torch.zeros(master.shape, dtype=torch.int8, device=DEVICE) if adamw else None
        self.moments = naive.Moments(mean, torch.zeros(master.shape, **byte), blocks)

    def master(self) -> torch.Tensor:
        found: torch.Tensor = self.naive.join(self.weight, self.low)
        return found


def attention(found: Part) -> None:
    """Varlen and flex against plain, over branches of every kind."""
    from clair_apo.train import attention as ways
    from clair_apo.train.packing import Branches

    branches, start = [], 0
    for prefix, chosen, rejected in [
        (5, 3, 4),
        (1, 1, 1),
        (9, 0, 3),
        (30, 40, 0),
        (0, 7, 6),
        (128, 200, 131),
    ]:
        branches.append(Branches(start, prefix, chosen, rejected))
        start += prefix + chosen + rejected
    for name, function in (("varlen", ways.varlen), ("flex", ways.flex)):

        def check(name: str = name, function: Any = function) -> str:
            if DEVICE != "cuda":
                raise Missing("trains on CUDA only")
            inputs = [random(1, heads, start, 64, dtype=torch.bfloat16) for heads in (8, 2, 2)]
            module = torch.nn.Module()
            return compared(
                lambda q, k, v: function(module, q, k, v, None, branches=tuple(branches))[0],
                lambda q, k, v: ways.plain(module, q, k, v, None, branches=tuple(branches))[0],
                inputs,
                BF16,
            )

        found.check(f"attention {name} equals plain, bf16", check)


if __name__ == "__main__":
    main()
