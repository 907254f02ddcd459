"""The optimiser and the course of its rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from clair_apo.train.options import TrainOptions


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], options: TrainOptions
) -> torch.optim.Optimizer:
    """AdamW, or RMSprop with `adam_beta2` as its smoothing. Weight decay spares vectors: biases and
    norms."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
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
