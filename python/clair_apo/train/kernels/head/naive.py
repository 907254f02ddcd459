"""The plain truth of the head: full logits, in float32, whatever the dtype of the factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from clair_apo.train import naive
from clair_apo.train.head import PLAIN_HEAD, HeadShape, PairLosses, pair_sums

if TYPE_CHECKING:
    from clair_apo.train.packing import Entries


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    shape: HeadShape = PLAIN_HEAD,
) -> Tensor:
    """Log-probabilities of `targets` [N] int64 by `hidden` [N, H] and `weight` [V, H]: float32 [N]."""
    offset = None if bias is None else bias.float()
    return naive.token_logps(hidden.float(), weight.float(), targets, offset, shape.scale, shape.softcap)


def pair_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    entries: Sequence[Entries],
    losses: PairLosses,
    bias: Tensor | None = None,
    shape: HeadShape = PLAIN_HEAD,
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss of pairs (float64, with the gradient), and the summed log-probabilities of chosen and
    rejected answers (float64 [pairs])."""
    logps = token_logps(hidden, weight, targets, bias, shape)
    chosen, rejected = pair_sums(logps, entries)
    loss = losses(chosen, rejected, slice(0, len(entries))).sum()
    return loss, chosen.detach(), rejected.detach()
