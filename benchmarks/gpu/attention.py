"""Attention over shared prefixes: time of a forward and backward pass of one layer, for each way to
compute it.

The peer is what trainers without sharing run: PyTorch's causal SDPA over both whole sequences of each
pair, unpadded lengths being equal here. Sharing at its ideal takes (P + 2S) / 2(P + S) of the tokens.
"""

from __future__ import annotations

from typing import Any

from common import DEVICE, HEADS, HIDDEN, KEY_HEADS, SMALL, TOKENS, Part, milliseconds, part


def main() -> None:
    with part("attention") as found:
        for prefix, rest in ((24, 36), (48, 24)) if SMALL else ((256, 384), (512, 256), (1024, 512)):
            measure(found, prefix, rest)


def measure(found: Part, prefix: int, rest: int) -> None:
    """Pairs of `prefix` shared tokens and two rests of `rest`, as many as fill a microbatch."""
    import torch
    import torch.nn.functional as F

    from clair_apo.train import attention
    from clair_apo.train.packing import Branches

    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    size = prefix + 2 * rest
    count = max(1, TOKENS // size)
    branches = tuple(Branches(i * size, prefix, rest, rest) for i in range(count))
    width = HIDDEN // HEADS

    def rows(batch: int, heads: int, length: int) -> Any:
        return torch.randn(batch, heads, length, width, device=DEVICE, dtype=dtype, requires_grad=True)

    shared = [rows(1, heads, count * size) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    whole = [rows(2 * count, heads, prefix + rest) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    module = torch.nn.Module()
    name = f"{count} pairs of {prefix} + 2 x {rest} tokens"
    ways = {"plain": attention.plain, "varlen": attention.varlen, "flex": attention.flex}
    if DEVICE != "cuda":
        del ways["varlen"], ways["flex"]  # neither has a backward pass on a CPU
    for way, function in ways.items():

        def run(way: str = way, function: Any = function) -> None:
            def once() -> None:
                out, _ = function(module, *shared, None, branches=branches)
                torch.autograd.grad(out.sum(), shared)

            found.figure(name, f"ours: {way}", milliseconds(once), "ms")

        found.peer(name, f"ours: {way}", run)

    def unshared() -> None:
        def once() -> None:
            out = F.scaled_dot_product_attention(*whole, is_causal=True, enable_gqa=True)
            torch.autograd.grad(out.sum(), whole)

        found.figure(name, "SDPA, nothing shared", milliseconds(once), "ms")

    found.peer(name, "SDPA, nothing shared", unshared)


if __name__ == "__main__":
    main()
