"""The head without logits in memory: log-probabilities, and the losses of pairs with their gradients.

For N rows, H hidden numbers, V tokens. `products.py` has the kernels and says why their numerics hold.

`token_logps`, for any loss, 8NHV operations:
1. forward: one product gives each row's log-probability, maximum and sum (2NHV); nothing of size V is kept.
2. backward, for each slice of the vocabulary (`SLICE_COLUMNS`): the product again, which ends as gradients
   of the slice's logits (2NHV); the weight's rows from all N rows at once, summed in float32 and rounded
   once (2NHV); the hidden rows' part, added in float32 (2NHV).
In memory beside the gradients: [N, slice] in the dtype of `hidden`, and [N, H] float32.

`pair_losses`, for losses that are separable per pair, 6NHV operations. For as many pairs as fit in
CHUNK_BYTES:
1. a product gives log-probabilities and keeps exp(logit - maximum of the tile) [n, V] (2nHV);
2. from the log-probabilities come the pairs' losses and, by autograd, each entry's coefficient;
3. with them what was kept becomes gradients of logits, in place;
4. the two products (4nHV). The hidden rows' gradients are complete; the weight's are added to those of the
   chunks before, in float32, and rounded to its dtype once a chunk.
With bf16 a gradient of a logit has a relative error of at most 2 * 2**-8, one for each rounding (1 and 3);
each chunk but the last rounds the weight's sum once more, by at most 2**-8 of it. 8,192 entries of a
vocabulary of 128,256 are three chunks.

Two kinds of pairs take the form of `token_logps` within the forward pass instead, 8NHV operations: a pair
that is larger than a chunk, and all pairs of a head with a soft cap, whose slope needs exact logits.
Without gradients there is only the first product (2NHV), over all pairs at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clair_apo.train.head import PLAIN_HEAD, HeadShape, Made, PairLosses, groups, made_forward, weigh
from clair_apo.train.kernels.head import launch
from clair_apo.train.kernels.head.launch import Head, Softmax

if TYPE_CHECKING:
    from clair_apo.train.packing import Entries

# Kept at a time. With the statistics of the tiles (48 MiB at V = 128,256) and the workspace
# of cuBLAS (32 MiB) it stays below 1 GiB.
CHUNK_BYTES = 928 << 20
# Of the vocabulary, where gradients of logits are made by slices.
SLICE_COLUMNS = 8192


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    shape: HeadShape = PLAIN_HEAD,
    slice_columns: int = SLICE_COLUMNS,
) -> Tensor:
    """Log-probabilities of `targets` [N] int64 by `hidden` [N, H] and `weight` [V, H]: float32 [N]."""
    result: Tensor = _TokenLogps.apply(hidden, weight, targets, bias, shape, slice_columns)
    return result


def pair_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    entries: Sequence[Entries],
    losses: PairLosses,
    bias: Tensor | None = None,
    shape: HeadShape = PLAIN_HEAD,
    chunk_bytes: int = CHUNK_BYTES,
    slice_columns: int = SLICE_COLUMNS,
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss of pairs, and the log-probabilities of their answers.

    `hidden` [K, H], `targets` [K] int64 are the entries to score, pair by pair as `entries` say.
    Returns the sum of `losses` (float64, the only one with a gradient), and the sums of chosen and
    rejected answers (float64 [pairs]).
    """

    def make(hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]) -> Made:
        sink = _Sink(hidden, weight, bias, wanted) if any(wanted) else None
        head = Head(launch.aligned(weight), bias, shape)
        rows_of = launch.aligned(hidden)
        at_once = max(1, chunk_bytes // (hidden.element_size() * weight.shape[0]))
        once = sink is not None and shape.softcap is None
        total = hidden.new_zeros((), dtype=torch.float64)
        sums = []
        for pairs in groups(entries, at_once) if once else [slice(0, len(entries))]:
            some = entries[pairs]
            rows = slice(some[0].start, some[-1].start + some[-1].total)
            kept = None
            if once and rows.stop - rows.start <= at_once:
                kept = launch.aligned_empty(hidden, rows.stop - rows.start, weight.shape[0])
            logps, softmax, maxima = launch.distributions(head, rows_of[rows], targets[rows], kept)
            loss, chosen, rejected, coefficients = weigh(logps, some, losses, pairs, sink is not None)
            total += loss
            sums.append((chosen, rejected))
            if sink is None or coefficients is None:
                continue
            if kept is None:
                sink.by_slices(head, rows, targets, softmax, coefficients, slice_columns)
            else:
                launch.gradients(kept, maxima, targets[rows], logps, softmax, coefficients, shape.scale)
                sink.whole(head, rows, kept)
        chosen, rejected = (torch.cat(side) for side in zip(*sums, strict=True))
        return Made(total, chosen, rejected, sink.gradients if sink else (None, None, None))

    return made_forward(hidden, weight, bias, make)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        shape: HeadShape,
        slice_columns: int,
    ) -> Tensor:
        head = Head(launch.aligned(weight), bias, shape)
        logps, softmax, _ = launch.distributions(head, launch.aligned(hidden), targets)
        ctx.save_for_backward(hidden, weight, targets, bias, softmax.highest, softmax.sums)
        ctx.shape, ctx.slice_columns = shape, slice_columns
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, targets, bias, highest, sums = ctx.saved_tensors
        head = Head(launch.aligned(weight), bias, ctx.shape)
        needs = ctx.needs_input_grad
        sink = _Sink(hidden, weight, bias, (needs[0], needs[1], needs[3]))
        rows = slice(0, len(targets))
        sink.by_slices(head, rows, targets, Softmax(highest, sums), grads[0].float(), ctx.slice_columns)
        of_hidden, of_weight, of_bias = sink.gradients
        return of_hidden, of_weight, None, of_bias, None, None


class _Sink:
    """The gradients of hidden rows, weight and bias, from those of logits."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]) -> None:
        self._rows = hidden
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.empty_like(weight) if wanted[1] else None
        self._bias = bias
        self._of_bias = None
        if bias is not None and wanted[2]:
            self._of_bias = torch.zeros_like(bias, dtype=torch.float32)
        self._begun = False

    @property
    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        of_bias = None
        if self._of_bias is not None and self._bias is not None:
            of_bias = self._of_bias.to(self._bias.dtype)
        return self.hidden, self.weight, of_bias

    def whole(self, head: Head, rows: slice, logits: Tensor) -> None:
        """Takes the gradients `logits` [n, V] of some rows."""
        with _sums_in_float32():
            if self.hidden is not None:
                torch.mm(logits, head.weight, out=self.hidden[rows])
            self._columns(slice(0, head.vocabulary), rows, logits)
        self._begun = True

    def by_slices(
        self,
        head: Head,
        rows: slice,
        targets: Tensor,
        softmax: Softmax,
        coefficients: Tensor,
        slice_columns: int,
    ) -> None:
        """Makes the gradients of some rows' logits by slices of the vocabulary, and takes them."""
        hidden = launch.aligned(self._rows[rows])
        count, width = hidden.shape
        into = None
        if self.hidden is not None:
            into = launch.aligned_empty(softmax.sums, count, width).zero_()
        room = launch.aligned_empty(hidden, count, min(slice_columns, head.vocabulary))
        for start in range(0, head.vocabulary, slice_columns):
            part = slice(start, min(start + slice_columns, head.vocabulary))
            logits = room[:, : part.stop - start]
            launch.slopes(head, hidden, targets[rows], softmax, coefficients, part, logits)
            if into is not None:
                launch.add_product(logits, head.weight[part], into)
            with _sums_in_float32():
                self._columns(part, rows, logits)
        if self.hidden is not None and into is not None:
            self.hidden[rows] = into
        self._begun = True

    def _columns(self, part: slice, rows: slice, logits: Tensor) -> None:
        if self.weight is not None and self._begun:
            self.weight[part].addmm_(logits.T, self._rows[rows])
        elif self.weight is not None:
            torch.mm(logits.T, self._rows[rows], out=self.weight[part])
        if self._of_bias is not None:
            self._of_bias[part] += logits.sum(0, dtype=torch.float32)


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Keeps cuBLAS from adding partial sums of a product in bf16, which torch allows it by default."""
    settings = torch.backends.cuda.matmul
    before = (
        settings.allow_bf16_reduced_precision_reduction,
        settings.allow_fp16_reduced_precision_reduction,
    )
    settings.allow_bf16_reduced_precision_reduction = False
    settings.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        (
            settings.allow_bf16_reduced_precision_reduction,
            settings.allow_fp16_reduced_precision_reduction,
        ) = before
