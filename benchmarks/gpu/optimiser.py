"""The optimiser's step over the weights of one layer of an 8B model, over and over: milliseconds for a
billion weights, and GB/s of what must be moved.

AdamW with 8-bit moments moves 14 bytes a weight (bf16 weight, 16 low bits and two moments read and
written, a bf16 gradient read). The peers move more: float32 AdamW 28 bytes, bf16 AdamW 14 and loses most
steps at rates of DPO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import DEVICE, HIDDEN, MLP, milliseconds, needs, part
from correctness import State

SHAPES = [(HIDDEN, HIDDEN), (MLP, HIDDEN), (MLP, HIDDEN), (HIDDEN, MLP)]
WEIGHTS = sum(rows * columns for rows, columns in SHAPES)


def main() -> None:
    with part("optimiser") as found:
        for who, (bytes_a_weight, build) in CONTENDERS.items():

            def run(
                who: str = who, size: int = bytes_a_weight, build: Callable[[], Callable[[], Any]] = build
            ) -> None:
                time = milliseconds(build())
                found.figure("step of a billion weights", who, time * 1e9 / WEIGHTS, "ms")
                found.figure("moved", who, size * WEIGHTS / time / 1e6, "GB/s")

            found.peer("optimiser", who, run)


def ours(fused: bool, adamw: bool) -> Callable[[], Callable[[], Any]]:
    def build() -> Callable[[], Any]:
        naive = needs("clair_apo.train.kernels.optimiser.naive")
        module = needs("clair_apo.train.kernels.optimiser.fused") if fused else naive
        states = [State(naive, 0.02 * torch.randn(*shape, device=DEVICE), adamw) for shape in SHAPES]
        gradients = [torch.randn(*shape, device=DEVICE).to(torch.bfloat16) for shape in SHAPES]
        scale = torch.ones((), device=DEVICE)
        rule = naive.Rule(adamw, 10, 2e-7, 0.9, 0.999, 1e-8, 0.0)

        def run() -> None:
            for state, gradient in zip(states, gradients, strict=True):
                module.step(state.weight, state.low, gradient, state.moments, scale, rule)

        return run

    return build


def torch_adamw(dtype: torch.dtype) -> Callable[[], Callable[[], Any]]:
    def build() -> Callable[[], Any]:
        parameters = [torch.nn.Parameter(torch.randn(*shape, device=DEVICE).to(dtype)) for shape in SHAPES]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW(parameters, lr=2e-7, fused=True)
        return optimizer.step

    return build


CONTENDERS: dict[str, tuple[int, Callable[[], Callable[[], Any]]]] = {
    "ours: fused, AdamW": (14, ours(True, True)),
    "ours: fused, RMSprop": (12, ours(True, False)),
    "ours: plain, AdamW": (14, ours(False, True)),
    "torch AdamW fused, float32": (28, torch_adamw(torch.float32)),
    "torch AdamW fused, bf16": (14, torch_adamw(torch.bfloat16)),
}

if __name__ == "__main__":
    main()
