"""The head: log-probabilities of target tokens from hidden rows, without the logits of a whole microbatch.

`token_logps` is the general form; its backward pass makes the logits once more. `pair_losses` is the form
for objectives that are separable per pair: with a pair's log-probabilities the gradient of its loss is
known, so the gradients of hidden rows and weight are made in the forward pass, from the same logits (6NHV
operations in place of 8NHV for N rows, H hidden numbers, V tokens).

Only rows that score a token come here. Logits are made in the compute dtype of `hidden`, a chunk of rows at
a time (`CHUNK_BYTES`), and turned into log-probabilities in float32. A head's scale, soft cap and bias are
part of the logits: `scale * (hidden @ weight.T + bias)`, then `cap * tanh(logits / cap)`. The plain twin is
in `naive.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clair_apo.train.packing import Entries

# Float32 logits that exist at a time.
CHUNK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What a model's head does besides the product."""

    scale: float = 1.0
    softcap: float | None = None


PLAIN_HEAD = HeadShape()

# From summed log-probabilities of chosen and rejected, [pairs] float64 each, and the pairs' numbers
# (first, last) to each pair's share of the loss.
PairLosses = Callable[[Tensor, Tensor, slice], Tensor]


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    shape: HeadShape = PLAIN_HEAD,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Log-probabilities of `targets` [N] int64 by `hidden` [N, H] and `weight` [V, H]: float32 [N]."""
    result: Tensor = _TokenLogps.apply(hidden, weight, targets, bias, shape, chunk_bytes)
    return result


class _Softmax:
    """The distributions that some hidden rows give, and the way back."""

    def __init__(self, head: _Head, hidden: Tensor, targets: Tensor) -> None:
        shape = head.shape
        logits = torch.nn.functional.linear(hidden, head.weight, head.bias).float()
        if shape.scale != 1.0:
            logits.mul_(shape.scale)
        self._capped = None
        if shape.softcap is not None:
            self._capped = logits.div_(shape.softcap).tanh_().clone()
            logits.mul_(shape.softcap)
        # In place from here on: this is the largest tensor of the whole step.
        chosen = logits.gather(1, targets[:, None])
        highest = logits.amax(1, keepdim=True)
        self._exps = logits.sub_(highest).exp_()
        self._sums = self._exps.sum(1, keepdim=True)
        self._head, self._targets = head, targets
        self.logps = (chosen - highest - self._sums.log())[:, 0]

    def gradient(self, coefficients: Tensor) -> Tensor:
        """Of `hidden @ weight.T + bias`, [n, V] in the weight's dtype, where the log-probabilities of the
        targets have `coefficients` [n]. Can be asked for once.

        d log p(target) / d logit(v) = [v = target] - p(v).
        """
        shape = self._head.shape
        gradient = self._exps.mul_(-coefficients[:, None] / self._sums)
        gradient.scatter_add_(1, self._targets[:, None], coefficients[:, None])
        if self._capped is not None:
            gradient.mul_(self._capped.square_().neg_().add_(1))
        if shape.scale != 1.0:
            gradient.mul_(shape.scale)
        return gradient.to(self._head.weight.dtype)


@dataclass(frozen=True, slots=True)
class _Head:
    weight: Tensor
    bias: Tensor | None
    shape: HeadShape


def _rows_at_once(vocabulary: int, chunk_bytes: int) -> int:
    return max(1, chunk_bytes // (4 * vocabulary))


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        shape: HeadShape,
        chunk_bytes: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets, bias)
        ctx.shape, ctx.chunk_bytes = shape, chunk_bytes
        head = _Head(weight, bias, shape)
        out = hidden.new_empty(len(targets), dtype=torch.float32)
        for part in _parts(slice(0, len(targets)), _rows_at_once(weight.shape[0], chunk_bytes)):
            out[part] = _Softmax(head, hidden[part], targets[part]).logps
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, targets, bias = ctx.saved_tensors
        sink = _Sink(hidden, weight, bias, ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        head = _Head(weight, bias, ctx.shape)
        coefficients = grads[0].float()
        for part in _parts(slice(0, len(targets)), _rows_at_once(weight.shape[0], ctx.chunk_bytes)):
            softmax = _Softmax(head, hidden[part], targets[part])
            sink.add(part, softmax.gradient(coefficients[part]))
        of_hidden, of_weight, of_bias = sink.gradients
        return of_hidden, of_weight, None, of_bias, None, None


class _Sink:
    """The gradients of hidden rows, weight and bias, added up chunk by chunk."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        of_hidden: bool = True,
        of_weight: bool = True,
    ) -> None:
        self._hidden, self._weight = hidden, weight
        self.hidden = torch.empty_like(hidden) if of_hidden else None
        self._of_weight = of_weight
        self.weight: Tensor | None = None  # made by the first chunk
        self.bias = torch.zeros_like(bias) if bias is not None and of_weight else None

    @property
    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.hidden, self.weight, self.bias

    def add(self, part: slice, logits: Tensor) -> None:
        if self.hidden is not None:
            torch.mm(logits, self._weight, out=self.hidden[part])
        if self._of_weight and self.weight is None:
            self.weight = logits.T @ self._hidden[part]
        elif self.weight is not None:
            self.weight.addmm_(logits.T, self._hidden[part])
        if self.bias is not None:
            self.bias.add_(logits.sum(0))


def pair_sums(logps: Tensor, entries: Sequence[Entries]) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of chosen and rejected answers, float64 [pairs] each, from those of the
    entries to score [K]."""
    chosen, rejected = [], []
    for start, shared, own, other in entries:
        both = logps[start : start + shared].double().sum()
        split = start + shared + own
        chosen.append(both + logps[start + shared : split].double().sum())
        rejected.append(both + logps[split : split + other].double().sum())
    return torch.stack(chosen), torch.stack(rejected)


def pair_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    entries: Sequence[Entries],
    losses: PairLosses,
    bias: Tensor | None = None,
    shape: HeadShape = PLAIN_HEAD,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss of pairs, and the log-probabilities of their answers.

    `hidden` [K, H], `targets` [K] int64 are the entries to score, pair by pair as `entries` say.
    Returns the sum of `losses` (float64, the only one with a gradient), and the sums of chosen and
    rejected answers (float64 [pairs]). Pairs are taken as many at a time as their logits fit; one pair that
    does not fit by itself makes its logits twice, as `token_logps` does.
    """

    def make(hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]) -> Made:
        head = _Head(weight, bias, shape)
        sink = _Sink(hidden, weight, bias, wanted[0], wanted[1]) if wanted[0] or wanted[1] else None
        at_once = _rows_at_once(weight.shape[0], chunk_bytes)
        total = hidden.new_zeros((), dtype=torch.float64)
        sums = []
        for pairs in groups(entries, at_once):
            some = entries[pairs]
            first = some[0].start
            parts = _parts(slice(first, some[-1].start + some[-1].total), at_once)
            scored = []
            for part in parts:
                softmax = _Softmax(head, hidden[part], targets[part])
                scored.append(softmax.logps)
            loss, chosen, rejected, coefficients = weigh(
                torch.cat(scored), some, losses, pairs, sink is not None
            )
            total += loss
            sums.append((chosen, rejected))
            if sink is None or coefficients is None:
                continue
            for part in parts:
                if len(parts) > 1:
                    softmax = _Softmax(head, hidden[part], targets[part])
                here = coefficients[part.start - first : part.stop - first]
                sink.add(part, softmax.gradient(here))
        chosen, rejected = (torch.cat(side) for side in zip(*sums, strict=True))
        return Made(total, chosen, rejected, sink.gradients if sink else (None, None, None))

    return made_forward(hidden, weight, bias, make)


class Made(NamedTuple):
    """The summed loss of pairs, the log-probabilities of their answers, and the gradients of hidden rows,
    weight and bias, where they are wanted."""

    loss: Tensor
    chosen: Tensor
    rejected: Tensor
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None]


# From hidden rows, weight and bias, and which of their gradients are wanted.
Make = Callable[[Tensor, Tensor, "Tensor | None", Sequence[bool]], Made]


def made_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, make: Make
) -> tuple[Tensor, Tensor, Tensor]:
    """What `make` gives, whose gradients become those of its loss: they are made in the forward pass."""
    loss, chosen, rejected = _MadeForward.apply(hidden, weight, bias, make, torch.is_grad_enabled())
    return loss, chosen, rejected


class _MadeForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, make: Make, grad_enabled: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Within a function of autograd gradients are never enabled, so the caller says whether they were.
        made = make(hidden, weight, bias, [grad_enabled and each for each in ctx.needs_input_grad[:3]])
        ctx.gradients = made.gradients
        ctx.mark_non_differentiable(made.chosen, made.rejected)
        return made.loss, made.chosen, made.rejected

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        # Scaling gradients that are made already would cost a pass over them: losses are scaled before.
        torch._assert_async(grads[0] == 1)
        return *gradients, None, None


def weigh(
    logps: Tensor, entries: Sequence[Entries], losses: PairLosses, pairs: slice, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What some pairs' log-probabilities, float32 [k], mean for the loss: its sum, the sums of chosen and
    rejected answers, and (with `gradient`) the derivative of the loss by each of them, float32 [k]."""
    first = entries[0].start
    coefficients = None
    with torch.enable_grad():
        logps = logps.detach().requires_grad_()
        chosen, rejected = pair_sums(logps, [e._replace(start=e.start - first) for e in entries])
        loss = losses(chosen, rejected, pairs).sum()
        if gradient:
            (coefficients,) = torch.autograd.grad(loss, logps)
    return loss.detach(), chosen.detach(), rejected.detach(), coefficients


def groups(entries: Sequence[Entries], at_once: int) -> list[slice]:
    """Runs of pairs with at most so many entries together, or one pair with more."""
    found, first, held = [], 0, 0
    for number, entry in enumerate(entries):
        if number > first and held + entry.total > at_once:
            found.append(slice(first, number))
            first, held = number, 0
        held += entry.total
    found.append(slice(first, len(entries)))
    return found


def _parts(rows: slice, at_once: int) -> list[slice]:
    return [slice(i, min(rows.stop, i + at_once)) for i in range(rows.start, rows.stop, at_once)]
