"""The objectives, each written once over the summed log-probabilities of answers.

The log-ratio of an answer is log pi(y|x) - log pi_ref(y|x), summed over its tokens, and its reward r = beta
times that; w is the chosen answer, l the rejected one, s the logistic function. Every loss is minimised.
Anchored losses have TRL's form, which is the paper's (equations 7 and 8) plus one, so that both start at 1.

| objective | loss | gradient at the start: dL/dr_w, dL/dr_l | when |
|---|---|---|---|
| apo-zero | (1 - s(r_w)) + s(r_l) | -1/4, +1/4 | chosen is better than what the model writes |
| apo-down | s(r_w) + (1 - s(r_w - r_l)) | 0, +1/4 | the model writes better than chosen |
| dpo | -log s(r_w - r_l) | -1/2, +1/2 | says nothing of either likelihood alone |
| kto-pair | (1 - s(r_w - beta KL_l)) + (1 - s(beta KL_w - r_l)) | -1/4, +1/4 | a moving anchor |
| kto | desirable: 1 - s(r - beta KL); undesirable: 1 - s(beta KL - r) | -1/4 or +1/4 | unpaired rows |
| apo-zero-unpaired | desirable: 1 - s(r); undesirable: s(r) | -1/4 or +1/4 | unpaired rows |
| sft | -log pi(y_w) / tokens | | a baseline on chosen answers |

Sources: D'Oosterlinck et al., Anchored Preference Optimization (TACL 2025); Rafailov et al., DPO (2023),
with the conservative label smoothing of its authors; Ethayarajh et al., KTO (2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from clair_apo.train.options import TrainOptions

UNPAIRED = ("kto", "apo-zero-unpaired")
FORMULAS = {
    "apo-zero": "(1 - σ(r_w)) + σ(r_l)",
    "apo-down": "σ(r_w) + (1 - σ(r_w - r_l))",
    "dpo": "-log σ(r_w - r_l)",
    "kto-pair": "(1 - σ(r_w - β KL_l)) + (1 - σ(β KL_w - r_l))",
    "kto": "1 - σ(r - β KL) if desirable, 1 - σ(β KL - r) if not",
    "apo-zero-unpaired": "1 - σ(r) if desirable, σ(r) if not",
    "sft": "-log π(y_w)",
}


@dataclass(frozen=True, slots=True)
class SequenceLogps:
    """[pairs] each: the log-probability of an answer, summed over its tokens; 0 where a row has none."""

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What holds for a whole optimiser step, and is known before its first gradient.

    `kl_chosen`, `kl_rejected`: max(0, mean log-ratio) of the step's chosen and rejected answers; for kto
    `kl_chosen` is that of prompts with answers of others. Nats an answer. `mean_chosen_tokens`: of its
    chosen answers.
    """

    kl_chosen: float
    kl_rejected: float
    mean_chosen_tokens: float


@dataclass(frozen=True, slots=True)
class ObjectiveOptions:
    """The part of a run's settings that the loss hangs on."""

    name: str
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    length_normalised: bool = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @classmethod
    def of(cls, options: TrainOptions) -> ObjectiveOptions:
        return cls(
            options.objective,
            options.beta,
            options.label_smoothing,
            options.sft_weight,
            options.length_normalised,
            options.desirable_weight,
            options.undesirable_weight,
        )


class Objective:
    """Losses of pairs, separable once the facts of the step are known."""

    def __init__(self, options: ObjectiveOptions) -> None:
        if options.name not in FORMULAS:
            raise ValueError(f"objective {options.name!r}: known are {', '.join(FORMULAS)}")
        self.options = options
        self.name = options.name

    @property
    def formula(self) -> str:
        return FORMULAS[self.name]

    @property
    def unpaired(self) -> bool:
        """Whether rows have one answer each, desirable (chosen) or undesirable (rejected)."""
        return self.name in UNPAIRED

    @property
    def needs_reference(self) -> bool:
        return self.name != "sft"

    @property
    def needs_kl(self) -> bool:
        return self.name in ("kto", "kto-pair")

    @property
    def needs_mismatched(self) -> bool:
        """Whether the KL estimate is of prompts with answers of others."""
        return self.name == "kto"

    @property
    def initial_loss(self) -> float | None:
        """What the first loss must be, the policy being the reference; None where it hangs on the data."""
        options = self.options
        if options.sft_weight or self.name == "sft":
            return None
        if self.unpaired:
            return (
                options.desirable_weight / 2
                if options.desirable_weight == options.undesirable_weight
                else None
            )
        return math.log(2) if self.name == "dpo" else 1.0

    def losses(
        self,
        policy: SequenceLogps,
        reference: SequenceLogps,
        tokens: tuple[Tensor, Tensor],
        facts: StepFacts,
    ) -> Tensor:
        """The loss of each pair, [pairs]. `tokens`: of the chosen and the rejected answers."""
        options = self.options
        chosen, rejected = self.rewards(policy, reference, tokens)
        if self.name == "apo-zero":
            loss = torch.sigmoid(-chosen) + torch.sigmoid(rejected)
        elif self.name == "apo-down":
            loss = torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
        elif self.name == "dpo":
            margin, wrong = chosen - rejected, options.label_smoothing
            loss = -(1 - wrong) * F.logsigmoid(margin) - wrong * F.logsigmoid(-margin)
        elif self.name == "kto-pair":
            of_chosen, of_rejected = options.beta * facts.kl_chosen, options.beta * facts.kl_rejected
            loss = torch.sigmoid(of_rejected - chosen) + torch.sigmoid(rejected - of_chosen)
        elif self.unpaired:
            anchor = options.beta * facts.kl_chosen if self.needs_kl else 0.0
            desirable = options.desirable_weight * torch.sigmoid(anchor - chosen)
            undesirable = options.undesirable_weight * torch.sigmoid(rejected - anchor)
            loss = torch.where(tokens[0] > 0, desirable, undesirable)
        else:
            loss = torch.zeros_like(policy.chosen)
        weight = 1.0 if self.name == "sft" else options.sft_weight
        if weight:
            # Over the step it is the mean over all tokens, as a language model is trained.
            loss = loss - weight * policy.chosen / facts.mean_chosen_tokens
        return loss

    def rewards(
        self, policy: SequenceLogps, reference: SequenceLogps, tokens: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """beta times the log-ratio of chosen and of rejected answers, [pairs] each; a token where
        length-normalised."""
        chosen = policy.chosen - reference.chosen
        rejected = policy.rejected - reference.rejected
        if self.options.length_normalised:
            chosen, rejected = chosen / tokens[0].clamp(min=1), rejected / tokens[1].clamp(min=1)
        return self.options.beta * chosen, self.options.beta * rejected
