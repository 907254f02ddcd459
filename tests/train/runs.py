"""Metrics and facts of runs that were never made, as the trainer writes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

HOSTILE = '<script>alert("1")</script> & "x": [y](z) \x1b]0;title\x07 `|`\n# `---'


def metrics(
    steps: int,
    *,
    chosen: float = 8.0,
    rejected: float = -22.0,
    evaluations: int = 5,
    noise: float = 2.0,
    every: int = 1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A run whose likelihoods end about `chosen` and `rejected` nats an answer from the reference's."""
    random = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    at = (
        {max(1, round(steps * k / evaluations)) for k in range(1, evaluations + 1)}
        if evaluations
        else set()
    )
    for step in range(1, steps + 1):
        done = (step - 1) / max(steps - 1, 1)
        grown = 1 - math.exp(-3 * done)
        wide = noise * math.sqrt(grown)
        up = chosen * grown + wide * random.normal()
        down = rejected * grown + 2 * wide * random.normal()
        if step % every == 0 or step == steps:
            found.append(
                {
                    "step": step,
                    "epoch": 2 * step / steps,
                    **_sides("", up, down, random),
                    "grad_norm": float(2.5 * random.lognormal(0, 0.3)),
                    "learning_rate": 2e-7 * (1 - done),
                    "kl": abs(up) / 900,
                    "pairs": 64 * every,
                    "tokens": 41_000 * every,
                    "tokens_logical": 52_000 * every,
                    "sharing": 1.27,
                    "num_tokens": 52_000 * step,
                    "tokens_per_second": float(random.normal(3100, 90)),
                    "tokens_logical_per_second": float(random.normal(3950, 100)),
                    "pairs_per_second": float(random.normal(4.8, 0.1)),
                    "peak_memory_gib": 4.4,
                    "data_wait": 0.01,
                    "seconds": 13.3 * step,
                }
            )
        if step in at:
            found.append(
                {"step": step, **_sides("eval_", chosen * grown * 0.8, rejected * grown * 0.8, random)}
            )
    return found


def _sides(prefix: str, up: float, down: float, random: np.random.Generator) -> dict[str, Any]:
    zero = 1 / (1 + math.exp(0.1 * up)) + 1 / (1 + math.exp(-0.1 * down))
    share = 1 / (1 + math.exp(-(up - down) / 12))
    values = {
        "loss": zero,
        "rewards/chosen": 0.1 * up,
        "rewards/rejected": 0.1 * down,
        "rewards/margins": 0.1 * (up - down),
        "rewards/accuracies": round(64 * min(1.0, max(0.0, share + 0.05 * random.normal()))) / 64,
        "logps/chosen": -310 + up,
        "logps/rejected": -290 + down,
        "logps/chosen_relative": up,
        "logps/rejected_relative": down,
    }
    return {prefix + name: float(value) for name, value in values.items()}


def facts(records: list[dict[str, Any]], objective: str = "apo-zero", **others: Any) -> dict[str, Any]:
    """What train.json holds after such a run."""
    final: dict[str, Any] = {}
    for record in records:
        final |= record
    settings = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "pairs": "pairs_revision.parquet",
        "output_dir": "trained",
        "objective": objective,
        "beta": 0.1,
        "label_smoothing": 0.0,
        "sft_weight": 0.0,
        "length_normalised": False,
        "reference": "cached",
        "max_length": 2048,
        "batch_size": 64,
        "num_train_epochs": 2,
        "max_steps": None,
        "seed": 0,
        "optimizer": "adamw",
        "learning_rate": 2e-7,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "max_grad_norm": 1.0,
        "lora_rank": None,
        "dtype": "auto",
        "eval_pairs": "held_out.parquet" if any("eval_loss" in r for r in records) else None,
    }
    return {
        "model": settings["model"],
        "model_hash": "0f" * 32,
        "base_model": settings["model"],
        "pairs": settings["pairs"],
        "pairs_hash": "a1" * 32,
        "rows": 12_010,
        "pairs_used": 11_874,
        "dropped": {"too_long": 131, "identical": 5},
        "objective": objective,
        "initial_loss": 1.0,
        "steps": records[-1]["step"] if records else 0,
        "settings": settings,
        "weights": "float32",
        "processes": 1,
        "hardware": "CPU, 2 threads",
        "versions": {"python": "3.11.2", "clair-apo": "0.1.0", "torch": "2.15.0", "transformers": "5.24.0"},
        "started_at": "2026-11-25T10:00:00+00:00",
        "finished_at": "2026-11-25T12:31:07+00:00",
        "final": final,
        **others,
    }
