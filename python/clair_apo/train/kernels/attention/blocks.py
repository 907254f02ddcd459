"""Attention over a microbatch of branches in float32, a block of queries at a time.

What is kept for the way back is what goes in and out, and a number for each query and head. The rejected
rest of a pair sees its prefix where that lies: nothing of it is run again, and there is no mask.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.function import once_differentiable

from clair_apo import _core
from clair_apo.errors import ClairError
from clair_apo.train.kernels.attention.team import team
from clair_apo.train.model_config import uneven

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clair_apo.train.packing import Branches

Span = tuple[int, int]
Task = Callable[[], object]


def unfit(config: Any, dtype: torch.dtype) -> str | None:
    """Why a model with this config cannot attend by this on the CPU here, or None."""
    text = config.get_text_config()
    if dtype != torch.float32:
        return "it computes in float32"
    if getattr(text, "attn_logit_softcapping", None):
        return "it knows no soft cap of attention scores"
    if (why := uneven(config, 16)) is not None:
        return why
    if _core.attention_kernel() is None:
        return "it needs a processor with AVX2 and FMA"
    if team() is None:
        return "it runs on the threads of PyTorch with GNU OpenMP, on Linux"
    return None


def attend(query: Tensor, key: Tensor, value: Tensor, branches: Sequence[Branches], scale: float) -> Tensor:
    """`query` [T, heads, d], `key`, `value` [T, key heads, d], all float32 on the CPU -> [T, heads, d].

    Raises: ClairError if d is not the same multiple of 16 for all, whatever the model's config says.
    """
    widths = {x.shape[-1] for x in (query, key, value)}
    if len(widths) > 1 or query.shape[-1] % 16:
        raise ClairError(
            f"heads of {' and '.join(map(str, sorted(widths)))} numbers are not possible with --attention "
            "blocks, which needs one multiple of 16; use plain"
        )
    result: Tensor = _Attend.apply(query, key, value, branches, scale)
    return result


def sides(branches: Sequence[Branches]) -> list[list[tuple[Span, Span]]]:
    """Of each pair the rows that all of a side see, and the side's own, first and behind the last: `prefix`
    and chosen rest together, then the rejected rest."""
    found = []
    for start, prefix, chosen, rejected in branches:
        split = start + prefix + chosen
        both = [((start, start), (start, split)), ((start, start + prefix), (split, split + rejected))]
        found.append([side for side in both if side[1][0] < side[1][1]])
    return found


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, branches: Sequence[Branches], scale: float
    ) -> Tensor:
        query, key, value = (x.contiguous() for x in (query, key, value))
        heads = query.shape[1]
        out = torch.empty_like(query)
        lse = query.new_empty(heads, len(query))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.branches, ctx.scale = branches, scale
        if is_fake(query):  # in a plan of memory there are only shapes
            return out
        arrays = _arrays(query=query, key=key, value=value, out=out, lse=lse)
        forward = partial(_core.attention_forward, **arrays, scale=scale)
        tasks: list[tuple[int, Task]] = [
            (own[1] - own[0], partial(forward, head=head, prefix=prefix, own=own))
            for pair in sides(branches)
            for prefix, own in pair
            for head in range(heads)
        ]
        _run(tasks)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        rows, heads, size = query.shape
        of_query = torch.empty_like(query)
        # For each head of queries its own: several share a head of keys.
        of_key, of_value = query.new_empty(2, heads, rows, size)
        of_out = grads[0].contiguous()
        if not is_fake(query):
            given = _arrays(query=query, key=key, value=value, out=out, lse=lse, of_out=of_out)
            given |= _arrays(of_query=of_query, of_key=of_key, of_value=of_value)
            _run_back(given, ctx.branches, ctx.scale, heads)
        shared = key.shape[1]
        of_key, of_value = (
            x.view(shared, heads // shared, rows, size).sum(1).transpose(0, 1) for x in (of_key, of_value)
        )
        return of_query, of_key, of_value, None, None


def _run_back(given: dict[str, Any], branches: Sequence[Branches], scale: float, heads: int) -> None:
    backward = partial(_core.attention_backward, **given, scale=scale)

    def whole(pair: list[tuple[Span, Span]], head: int) -> None:
        # One after the other: the second side adds to the prefix what the first has put there.
        for prefix, own in pair:
            backward(head=head, prefix=prefix, own=own)

    tasks: list[tuple[int, Task]] = [
        (sum(own[1] - own[0] for _, own in pair), partial(whole, pair, head))
        for pair in sides(branches)
        for head in range(heads)
    ]
    _run(tasks)


def _arrays(**tensors: Tensor) -> dict[str, Any]:
    return {name: x.detach().numpy() for name, x in tensors.items()}


def _run(tasks: list[tuple[int, Task]]) -> None:
    """The longest ones first, so that no thread is left with one of them at the end."""
    threads = team()
    if threads is None:
        raise ClairError("PyTorch's threads are not known here: --attention plain trains without them")
    threads.run([task for _, task in sorted(tasks, key=lambda task: -task[0])])
