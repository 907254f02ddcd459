"""The optimiser and the course of its rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clair_apo.train.split import SplitOptimizer, clipped_scale

if TYPE_CHECKING:
    from clair_apo.train.options import TrainOptions


def make_optimizer(
    named: Iterable[tuple[str, torch.nn.Parameter]],
    options: TrainOptions,
    low: Mapping[str, Tensor] | None = None,
    *,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """AdamW, or RMSprop with `adam_beta2` as its smoothing. Weight decay spares vectors: biases and
    norms.

    `low`: the low bits of bf16 weights by name (`split_weights`), where they are trained with them;
    `fused`: by a kernel. Without `low` it is torch's own optimiser.
    """
    trained = {name: p for name, p in named if p.requires_grad}
    if low is not None:
        return SplitOptimizer(
            trained.items(),
            low,
            kind=options.optimizer,
            rate=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            epsilon=options.adam_epsilon,
            weight_decay=options.weight_decay,
            coded=options.moments == "8bit",
            fused=fused,
        )
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            groups, lr=options.learning_rate, alpha=options.adam_beta2, eps=options.adam_epsilon
        )
    return torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=True,
    )


def clip_and_step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter], largest: float
) -> Tensor:
    """Steps with gradients whose norm is at most `largest`. Returns the norm that they had."""
    if isinstance(optimizer, SplitOptimizer):
        norm, scale = clipped_scale(parameters, largest)
        optimizer.step(scale=scale)
        return norm
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
    optimizer.step()
    return norm


def rate_factor(options: TrainOptions, step: int, steps: int) -> float:
    """What the highest rate is multiplied with in a step (counted from 0) of `steps`.

    As transformers' schedules: up from 0 over the warm-up, then level, straight to 0, or along half a
    cosine.
    """
    warmup = math.ceil(steps * options.warmup_ratio)
    if step < warmup:
        return step / warmup
    if options.lr_scheduler_type == "constant":
        return 1.0
    left = (steps - step) / max(1, steps - warmup)
    if options.lr_scheduler_type == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return left


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
