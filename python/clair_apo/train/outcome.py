"""What an objective promises of the likelihoods, and what a run's metrics say of it.

Read from train.json and metrics.jsonl alone, for the terminal, the page and the model card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHOSEN, REJECTED = "logps/chosen_relative", "logps/rejected_relative"
# Nats an answer. Below this, rounding of sums over hundreds of tokens looks like movement.
STILL = 0.1
# The end of a run is a mean over this share of its steps: one step has few pairs.
LAST_SHARE = 0.1

UP, DOWN, OPEN = 1, -1, 0


@dataclass(frozen=True, slots=True)
class Promise:
    """Which way the likelihoods of chosen and rejected answers go if the objective does what it says
    (`OPEN`: it does not say)."""

    formula: str
    chosen: int
    rejected: int
    text: str


_APO_ZERO = "chosen up, rejected down"
PROMISES = {
    "apo-zero": Promise("1 - σ(r_c) + σ(r_r)", UP, DOWN, _APO_ZERO),
    "apo-down": Promise("σ(r_c) + 1 - σ(r_c - r_r)", DOWN, DOWN, "both down, rejected more"),
    "dpo": Promise("-log σ(r_c - r_r)", OPEN, OPEN, "only their difference; either may go up or down"),
    "kto-pair": Promise("[2 - σ(r_c - β KL_r) - σ(β KL_c - r_r)] / 2", UP, DOWN, _APO_ZERO),
    "kto": Promise("1 - σ(r - β KL) if chosen, 1 - σ(β KL - r) if rejected", UP, DOWN, _APO_ZERO),
    "apo-zero-unpaired": Promise("1 - σ(r) if chosen, σ(r) if rejected", UP, DOWN, _APO_ZERO),
    "sft": Promise("-log π(y_c|x) / tokens", UP, OPEN, "chosen up; it says nothing of rejected"),
}


def promise(objective: str) -> Promise:
    return PROMISES.get(objective, Promise("", OPEN, OPEN, "not known"))


def formula(facts: Mapping[str, Any]) -> str:
    """The loss of one pair in a line, with what the settings add to it."""
    settings = facts.get("settings") or {}
    text = promise(str(facts.get("objective"))).formula
    if not text:
        return ""
    if smoothing := settings.get("label_smoothing"):
        text = f"-(1 - ε) log σ(r_c - r_r) - ε log σ(r_r - r_c), ε = {smoothing:g}"
    weights = [settings.get(f"{kind}desirable_weight", 1) for kind in ("", "un")]
    if weights != [1, 1]:
        text += f", times {weights[0]:g} and {weights[1]:g}"
    if weight := settings.get("sft_weight"):
        text += f" + {weight:g} SFT"
    return text.replace("-", "−")


def terms(facts: Mapping[str, Any]) -> str:
    """What the letters of the formula mean; "" where it has none to explain."""
    settings = facts.get("settings") or {}
    if facts.get("objective") == "sft" or "beta" not in settings:
        return ""
    each = " / tokens" if settings.get("length_normalised") else ""
    return f"r = β log(π(y|x) / π_ref(y|x)){each}, β = {settings['beta']:g}"


# --- what happened --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """One metric at both ends of a run. `last` is a mean over the last steps of training, and what the last
    evaluation found on held-out pairs; None where it was never a number."""

    name: str
    first: float | None
    last: float | None
    held_out: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`chosen`, `rejected`: nats an answer that they moved by, against the reference (None: not measured),
    on held-out pairs where `held_out`. `kept`: whether that is what the objective promises; None where it
    promises nothing, or too little has moved to say."""

    held_out: bool
    chosen: float | None
    rejected: float | None
    chosen_way: int
    rejected_way: int
    kept: bool | None
    text: str
    last_steps: int


def number(record: Mapping[str, Any], name: str) -> float:
    """A metric, NaN where it is absent or was none."""
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def written(form: str, value: float) -> str:
    """`value` as `form` says, without a sign on what is rounded to nothing: log-ratios of the first step
    are zeros of either sign."""
    text = form.format(value)
    return text[1:] if text[0] in "+-" and not text.strip("+-0.%") else text


def training(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of steps."""
    return [record for record in metrics if not _held_out(record)]


def held_out(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of evaluations."""
    return [record for record in metrics if _held_out(record)]


def _held_out(record: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval_") for name in record)


def window(steps: int) -> int:
    """How many of `steps` logged steps count as the end of a run."""
    return max(1, round(steps * LAST_SHARE))


def changes(metrics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Change]:
    """Both ends of each metric that the run has."""
    steps, evaluations = training(metrics), held_out(metrics)
    found = []
    for name in names:
        values = [number(record, name) for record in steps]
        known = [value for value in values if math.isfinite(value)]
        held = [number(record, f"eval_{name}") for record in evaluations]
        held = [value for value in held if math.isfinite(value)]
        if known or held:
            end = [value for value in values[-window(len(values)) :] if math.isfinite(value)]
            found.append(
                Change(
                    name,
                    known[0] if known else None,
                    sum(end) / len(end) if end else None,
                    held[-1] if held else None,
                )
            )
    return found


def outcome(metrics: Sequence[Mapping[str, Any]], objective: str) -> Outcome:
    """Which way the likelihoods went, and whether that is what `objective` promises."""
    steps, evaluations = training(metrics), held_out(metrics)
    last = window(len(steps))
    on_held_out = any(
        math.isfinite(number(e, f"eval_{name}")) for e in evaluations for name in (CHOSEN, REJECTED)
    )
    if on_held_out:
        sides = [_end(evaluations[-1:], f"eval_{name}") for name in (CHOSEN, REJECTED)]
    else:
        sides = [_end(steps[-last:], name) for name in (CHOSEN, REJECTED)]
    (chosen, chosen_way), (rejected, rejected_way) = sides
    kept = _kept(objective, chosen, rejected, chosen_way, rejected_way)
    text = _in_words(objective, kept, chosen, rejected, chosen_way, rejected_way)
    return Outcome(on_held_out, chosen, rejected, chosen_way, rejected_way, kept, text, last)


def _end(records: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, int]:
    """The mean of a metric, and which way it lies from 0: neither if that is within two standard errors."""
    values = [value for record in records if math.isfinite(value := number(record, name))]
    if not values:
        return None, OPEN
    mean = sum(values) / len(values)
    error = 0.0
    if len(values) > 1:
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    if abs(mean) <= max(STILL, 2 * error):
        return mean, OPEN
    return mean, UP if mean > 0 else DOWN


def _kept(
    objective: str, chosen: float | None, rejected: float | None, chosen_way: int, rejected_way: int
) -> bool | None:
    wanted = promise(objective)
    pairs = [
        (want, way)
        for want, value, way in (
            (wanted.chosen, chosen, chosen_way),
            (wanted.rejected, rejected, rejected_way),
        )
        if want != OPEN and value is not None
    ]
    if any(way not in (OPEN, want) for want, way in pairs):
        return False
    if not pairs or any(way == OPEN for _, way in pairs):
        return None
    if objective == "apo-down" and chosen is not None and rejected is not None:
        return rejected < chosen
    return True


def _in_words(
    objective: str,
    kept: bool | None,
    chosen: float | None,
    rejected: float | None,
    chosen_way: int,
    rejected_way: int,
) -> str:
    if chosen is None and rejected is None:
        return "no log-probabilities relative to a reference were measured"
    words = {UP: "up", DOWN: "down", OPEN: "hardly moved"}
    went = ", ".join(
        f"{name} {words[way]}"
        for name, value, way in (("chosen", chosen, chosen_way), ("rejected", rejected, rejected_way))
        if value is not None
    )
    wanted = promise(objective)
    if kept:
        return f"{went}: what {objective} promises"
    if kept is False:
        return f"{went}: {objective} promises {wanted.text}"
    if wanted.chosen == wanted.rejected == OPEN:
        return f"{went}: {objective} leaves that undetermined"
    return f"{went}: too little to say whether it is what {objective} promises ({wanted.text})"
