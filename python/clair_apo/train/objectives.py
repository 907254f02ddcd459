"""What training makes smaller, each objective written once over sequence log-probabilities.

Notation: the log-ratio of an answer is log p_policy - log p_reference, summed over its tokens;
r_w and r_l are beta times the log-ratios of the chosen and the rejected answer, m = r_w - r_l, s is the
logistic function. With `length_normalised` a log-ratio is divided by the answer's number of tokens first.

| name | loss of a row | at the start | d/dr_w, d/dr_l there |
|---|---|---|---|
| apo-zero | (1 - s(r_w)) + s(r_l) | 1 | -1/4, +1/4 |
| apo-down | s(r_w) + (1 - s(m)) | 1 | 0, +1/4 |
| dpo | -(1 - e) log s(m) - e log s(-m) | ln 2 | -(1/2 - e), +(1/2 - e) |
| kto-pair | mean of 1 - s(r_w - beta KL_l) and 1 - s(beta KL_w - r_l) | 1/2 | -1/8, +1/8 |
| kto | chosen: d (1 - s(r_w - beta KL)); rejected: u (1 - s(beta KL - r_l)) | d/2, u/2 | -d/4, +u/4 |
| apo-zero-unpaired | kto with KL = 0 | d/2, u/2 | -d/4, +u/4 |
| sft | -log p_policy(chosen), a token | | |

e is the label smoothing, d and u are the weights of desirable and undesirable answers. A row of kto or
apo-zero-unpaired with both answers has the mean of both terms, so a table of pairs gives what its
answers, taken one by one, would give. The losses of APO are the paper's plus 1, as TRL writes them.

When to use which: apo-zero where the chosen answers are better than the model's own, apo-down where the
model's own are better (both then become less likely, the rejected ones more so); dpo fixes the difference
alone, and lets both move either way; kto and apo-zero-unpaired learn from answers without a partner;
sft from chosen answers only.

Sources: APO, arXiv 2408.06266, equations 7 and 8; DPO, arXiv 2305.18290, its smoothed form from
"A note on DPO with noisy preferences" (Mitchell, 2023); KTO, arXiv 2402.01306, equation 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from clair_apo.errors import UsageError
from clair_apo.lazy import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clair_apo.train.options import TrainOptions
else:
    torch = Lazy("torch")  # flags are checked before torch is needed

OBJECTIVES = ("apo-zero", "apo-down", "dpo", "kto-pair", "kto", "apo-zero-unpaired", "sft")
WEIGHTED = ("kto", "apo-zero-unpaired")
NORMALISED = ("apo-zero", "apo-down", "dpo")


@dataclass(frozen=True, slots=True)
class ObjectiveOptions:
    """An objective and its numbers.

    `sft_weight` times the loss of `sft` is added to any other objective. `length_normalised` wants a
    greater beta (2 to 5), since log-ratios a token are small.
    Raises UsageError for a value or a combination that has no meaning.
    """

    name: str = "apo-zero"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    length_normalised: bool = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @classmethod
    def of(cls, options: TrainOptions) -> ObjectiveOptions:
        """The part of a run's settings that the loss hangs on."""
        own = {item.name: getattr(options, item.name) for item in fields(cls) if item.name != "name"}
        return cls(options.objective, **own)

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise UsageError(f"objective {self.name!r}: is none of {', '.join(OBJECTIVES)}")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise UsageError(f"beta {self.beta}: must be a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UsageError(f"label smoothing {self.label_smoothing}: must be at least 0 and below 0.5")
        if self.label_smoothing and self.name != "dpo":
            raise UsageError(f"label smoothing is defined for dpo, not for {self.name}; leave it out")
        if not (math.isfinite(self.sft_weight) and self.sft_weight >= 0):
            raise UsageError(f"SFT weight {self.sft_weight}: must be a number of at least 0")
        if self.sft_weight and self.name == "sft":
            raise UsageError("an SFT weight adds to another objective; sft itself needs none")
        if self.length_normalised and self.name not in NORMALISED:
            raise UsageError(
                f"length normalisation is defined for {', '.join(NORMALISED)}, not for {self.name}"
            )
        for what in ("desirable", "undesirable"):
            weight = getattr(self, f"{what}_weight")
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"{what} weight {weight}: must be a number above 0")
            if weight != 1 and self.name not in WEIGHTED:
                raise UsageError(
                    f"the {what} weight is defined for {' and '.join(WEIGHTED)}, not for {self.name}"
                )


@dataclass(frozen=True, slots=True)
class SequenceLogps:
    """Log-probabilities of the answers of P rows, in nats, summed over the tokens of each: float32 or
    float64, [P]; 0 where a row has no such answer."""

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What the terms of one row need to know of the whole optimiser step (all microbatches, all
    processes): plain numbers, so no gradient flows through them.

    kto-pair: `kl_chosen` is max(0, mean of the chosen log-ratios), `kl_rejected` that of the rejected
    ones; each enters the term of the other answer. kto: `kl_chosen` is max(0, mean log-ratio of prompts
    with the answers of other rows), for both terms. Log-ratios in nats an answer, without beta.
    `mean_chosen_tokens` is the number of chosen tokens in the step over its number of rows; sft and
    `sft_weight` divide by it, so that the mean over the step is the mean over its chosen tokens.
    """

    kl_chosen: float = 0.0
    kl_rejected: float = 0.0
    mean_chosen_tokens: float = 1.0


class Objective:
    """A loss a row. Given the facts of a step it depends on nothing but the row, so the loss of a step is
    the mean of `losses` over its rows however they are divided into microbatches."""

    def __init__(self, options: ObjectiveOptions) -> None:
        name = options.name
        self.options = options
        self.needs_reference = name != "sft"
        self.needs_kl = name in ("kto", "kto-pair")
        self.needs_mismatched = name == "kto"  # the KL is of prompts with the answers of other rows
        self.unpaired = name in WEIGHTED
        self.initial_loss = self._initial_loss()

    def _initial_loss(self) -> float | None:
        """The loss while policy and reference are the same; None where it depends on the data."""
        options = self.options
        if options.sft_weight or options.name == "sft":
            return None
        if options.name in ("apo-zero", "apo-down"):
            return 1.0
        if options.name == "dpo":
            return math.log(2)
        same = options.desirable_weight == options.undesirable_weight
        return options.desirable_weight / 2 if same else None

    def losses(
        self,
        policy: SequenceLogps,
        reference: SequenceLogps | None,
        tokens: tuple[Tensor, Tensor],
        facts: StepFacts,
    ) -> Tensor:
        """The loss of each row, [P], of the dtype of `policy`; differentiable in `policy`.

        `tokens` are the numbers of tokens of the chosen and the rejected answers, [P] each; 0 says that
        a row has no such answer. `reference` may be None where `needs_reference` is false.
        """
        options = self.options
        if options.name == "sft":
            return _sft(policy, facts)
        ratios = self._log_ratios(policy, reference, tokens)
        if options.name in ("kto", "apo-zero-unpaired", "kto-pair"):
            loss = self._by_answer(ratios, tokens, facts)
        else:
            r_w, r_l = (options.beta * ratio for ratio in ratios)
            # 1 - s(x) is written s(-x), which keeps its digits where s(x) is close to 1.
            if options.name == "apo-zero":
                loss = torch.sigmoid(-r_w) + torch.sigmoid(r_l)
            elif options.name == "apo-down":
                loss = torch.sigmoid(r_w) + torch.sigmoid(r_l - r_w)
            else:
                loss = _dpo(r_w - r_l, options.label_smoothing)
        return loss + options.sft_weight * _sft(policy, facts) if options.sft_weight else loss

    def rewards(
        self,
        policy: SequenceLogps,
        reference: SequenceLogps | None,
        tokens: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """r_w and r_l, [P] each, without gradient: what the loss sees, so with `length_normalised` a
        token. 0 for sft, which has no reference to compare with, and where a row has no such answer."""
        if reference is None:
            return torch.zeros_like(policy.chosen), torch.zeros_like(policy.rejected)
        chosen, rejected = self._log_ratios(policy, reference, tokens)
        return self.options.beta * chosen.detach(), self.options.beta * rejected.detach()

    def _log_ratios(
        self,
        policy: SequenceLogps,
        reference: SequenceLogps | None,
        tokens: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        if reference is None:
            raise ValueError(f"{self.options.name} needs the reference's log-probabilities")
        chosen = policy.chosen - reference.chosen
        rejected = policy.rejected - reference.rejected
        if self.options.length_normalised:
            return chosen / tokens[0].clamp(min=1), rejected / tokens[1].clamp(min=1)
        return chosen, rejected

    def _by_answer(
        self, ratios: tuple[Tensor, Tensor], tokens: tuple[Tensor, Tensor], facts: StepFacts
    ) -> Tensor:
        """A term for each answer there is, and their mean."""
        options = self.options
        for_chosen = for_rejected = facts.kl_chosen if self.needs_kl else 0.0
        if options.name == "kto-pair":
            for_chosen = facts.kl_rejected
        chosen = torch.sigmoid(options.beta * (for_chosen - ratios[0])) * options.desirable_weight
        rejected = torch.sigmoid(options.beta * (ratios[1] - for_rejected)) * options.undesirable_weight
        there = [(count > 0).to(chosen.dtype) for count in tokens]
        return (chosen * there[0] + rejected * there[1]) / (there[0] + there[1]).clamp(min=1)


def _dpo(margin: Tensor, smoothing: float) -> Tensor:
    loss = -torch.nn.functional.logsigmoid(margin)
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * torch.nn.functional.logsigmoid(-margin)


def _sft(policy: SequenceLogps, facts: StepFacts) -> Tensor:
    return -policy.chosen / facts.mean_chosen_tokens
