"""The plain twins: what the fast parts must equal, as short as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clair_apo.train.packing import Pair


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Log-probabilities of `targets` [N] by `hidden` [N, H] and `weight` [V, H], with full logits."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits.float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def answer_logps(model: Any, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of chosen and rejected answers, float64 [pairs]: a pass of the model as it
    is for each answer, with nothing shared."""

    def of(prompt: Tensor, answer: Tensor) -> Tensor:
        ids = torch.cat([prompt, answer])[None].long().to(model.device)
        answer = answer.to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logps: Tensor = logits.float().log_softmax(-1)
        return logps.gather(1, answer.long()[:, None]).double().sum()

    sides = [
        [of(torch.from_numpy(pair.prompt), torch.from_numpy(side)) for side in (pair.chosen, pair.rejected)]
        for pair in pairs
    ]
    chosen, rejected = zip(*sides, strict=True)
    return torch.stack(chosen), torch.stack(rejected)
