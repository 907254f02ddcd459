"""Attention over shared prefixes on a CPU: `--attention blocks` (Rust) beside `plain` (PyTorch's SDPA).

    python benchmarks/attention_cpu.py
    python benchmarks/attention_cpu.py --heads 32 --key-heads 8 --size 128 --threads 8

One layer's attention, forward and backward, over one pair of each shape, as the trainer calls it. The two
take turns, so that what else a machine does meets both; a figure is the middle of `--repeats`. By default
SmolLM2's heads. Half a minute on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from clair_apo import _core
from clair_apo.train import attention
from clair_apo.train.packing import Branches

# Tokens of the prefix, the chosen rest and the rejected rest.
SHAPES = [(60, 517, 686), (150, 950, 750), (500, 200, 250), (20, 100, 120)]
WAYS: dict[str, Callable[..., tuple[torch.Tensor, None]]] = {
    "plain": attention.plain,
    "blocks": attention.blocks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--key-heads", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, blocks with "
        f"{_core.attention_kernel()}; {args.threads} threads; milliseconds, and the ratio"
    )
    print(f"{'prefix, chosen, rejected':26}{'plain':>8}{'blocks':>8}{'blocks / plain':>16}")
    for shape in SHAPES:
        times = {name: [] for name in WAYS}
        for _ in range(args.repeats):
            for name, way in WAYS.items():
                times[name].append(seconds(way, shape, args))
        plain, blocks = (1e3 * statistics.median(times[name]) for name in WAYS)
        print(f"{', '.join(map(str, shape)):26}{plain:8.1f}{blocks:8.1f}{blocks / plain:16.2f}")


def seconds(
    way: Callable[..., tuple[torch.Tensor, None]], shape: tuple[int, ...], args: argparse.Namespace
) -> float:
    """Forward and backward, once. Heads lie side by side in a token's row, as linear layers leave them."""
    tokens = sum(shape)
    rows = [
        torch.randn(1, tokens, heads, args.size).transpose(1, 2).requires_grad_()
        for heads in (args.heads, args.key_heads, args.key_heads)
    ]
    upstream = torch.randn(1, tokens, args.heads, args.size)
    start = time.perf_counter()
    out, _ = way(torch.nn.Module(), *rows, None, branches=(Branches(0, *shape),))
    torch.autograd.grad(out, rows, upstream)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
