"""The loop: references, optimiser steps, held-out evaluation.

An optimiser step runs its microbatches one after the other and adds up their gradients. Each pair's loss is
divided by the number of pairs of the whole step, so how it is cut into microbatches and processes does not
matter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clair_apo.errors import ClairError
from clair_apo.train.launch import Processes, accumulating
from clair_apo.train.metrics import StepMetrics
from clair_apo.train.objectives import Objective, SequenceLogps, StepFacts
from clair_apo.train.optim import clip_and_step, rate_factor, set_rate
from clair_apo.train.packing import pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clair_apo.train.options import TrainOptions
    from clair_apo.train.packing import Packed
    from clair_apo.train.plan import Microbatch, Plan, Step
    from clair_apo.train.policy import Policy
    from clair_apo.train.reference import References
    from clair_apo.train.tokens import TokenPairs

# Of the reference pass, before what is known is written to the cache.
SECONDS_BETWEEN_SAVES = 60.0

OnProgress = Callable[[int, int], None]


class Stopped(Exception):
    """The run was asked to stop; nothing of the step under way was applied."""


@dataclass
class Data:
    """Pairs to run over, in the order of their plan, with what the reference says of them."""

    pairs: TokenPairs
    plan: Plan
    references: References | None
    mismatched: Data | None = None  # prompts with answers of others, for the KL estimate of KTO

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of prompt, chosen and rejected, int64 [n, 3]: every step asks, and the table is long."""
        return self.pairs.lengths()

    @cached_property
    def logical(self) -> NDArray[np.int64]:
        """Tokens of each pair in passes without sharing, int64 [n]."""
        answers = self.lengths[:, 1:]
        total: NDArray[np.int64] = self.lengths[:, 0] * (answers > 0).sum(1) + answers.sum(1)
        return total


class Loop:
    """`module` is `policy` as the processes hold it; `live` the reference, where it is not cached: another
    model, or with adapters the same one, which they are taken off for."""

    def __init__(
        self,
        options: TrainOptions,
        objective: Objective,
        policy: Policy,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
        live: torch.nn.Module | None = None,
        first_loss_tolerance: float = 1e-3,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.options, self.objective = options, objective
        self.policy, self.module, self.optimizer = policy, module, optimizer
        self.processes, self.live, self.stop = processes, live, stop
        self.first_loss_tolerance = first_loss_tolerance
        self.adapters_off = getattr(policy.causal_lm, "disable_adapter", contextlib.nullcontext)

    # --- references ------------------------------------------------------------------------------

    def find_references(self, data: Data, first: int, steps: int, on_progress: OnProgress) -> None:
        """Computes what is not cached of the pairs of the steps `first` to `steps` - 1, with the policy as
        it is, in the microbatches of the first epoch, so that its numbers are those of training.

        A new run leaves its first step out: there the policy is the reference still, and says it itself.
        """
        references = data.references
        if references is None:
            return
        last = min(steps, data.plan.steps_per_epoch)
        saved = time.monotonic()
        for step in data.plan.steps(first, last, self.processes.rank):
            # Other processes may hold other pairs, but all take part in gathering weights.
            missing = any(references.missing(m.pairs) for m in step.microbatches)
            if self.processes.any(missing):
                for micro in step.microbatches:
                    self._check_stop(references)
                    batch = self._pack(data, micro)
                    _, chosen, rejected = self._scored(self.module, batch)
                    references.put(micro.pairs, chosen.cpu().numpy(), rejected.cpu().numpy())
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    self._share(references)
                    saved = time.monotonic()
            on_progress(step.number + 1, last)
        self._share(references)

    def _share(self, references: References) -> None:
        """Has every process know what the others found out; the first one writes it to the cache."""
        if self.processes.count > 1:
            for side in (references.chosen, references.rejected):
                known = torch.from_numpy(np.where(np.isnan(side), -np.inf, side)).to(self.processes.device)
                torch.distributed.all_reduce(known, torch.distributed.ReduceOp.MAX)
                side[:] = np.where(np.isneginf(known.cpu().numpy()), np.nan, known.cpu().numpy())
        if self.processes.first:
            references.save()
        self.processes.wait()

    def _scored(self, module: torch.nn.Module, batch: Packed) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            out: tuple[Tensor, Tensor, Tensor] = module(batch, lambda chosen, rejected, _: chosen)
        return out

    def _reference(self, data: Data, micro: Microbatch, batch: Packed) -> SequenceLogps:
        device = self.processes.device
        if data.references is not None:
            places = list(micro.pairs)
            known = data.references
            return SequenceLogps(
                torch.from_numpy(known.chosen[places]).to(device, non_blocking=True),
                torch.from_numpy(known.rejected[places]).to(device, non_blocking=True),
            )
        if self.live is not None:
            with self.adapters_off():
                _, chosen, rejected = self._scored(self.live, batch)
            return SequenceLogps(chosen, rejected)
        zero = torch.zeros(len(micro.pairs), dtype=torch.float64, device=device)
        return SequenceLogps(zero, zero)

    def _learnt(
        self, data: Data, micro: Microbatch, reference: SequenceLogps, policy: SequenceLogps
    ) -> SequenceLogps:
        """In the first step: the reference, with what the untrained policy says where it was not known."""
        whole = _completed(reference, policy)
        if data.references is not None and data.references.missing(micro.pairs):
            data.references.put(micro.pairs, whole.chosen.cpu().numpy(), whole.rejected.cpu().numpy())
        return whole

    # --- training --------------------------------------------------------------------------------

    def train(
        self, data: Data, first: int, steps: int
    ) -> Iterator[tuple[Step, StepMetrics, dict[str, Any]]]:
        """Runs the steps `first` to `steps` - 1; after each yields it, what was measured (not read from the
        device yet), and what the step as a whole has: `grad_norm` (a tensor), `learning_rate`."""
        for step in data.plan.steps(first, steps, self.processes.rank):
            rate = self.options.learning_rate * rate_factor(self.options, step.number, steps)
            set_rate(self.optimizer, rate)
            measured = StepMetrics(with_reference=self.objective.needs_reference)
            facts = self._facts(data, step)
            scale = self.processes.count / len(step.members)
            for number, micro in enumerate(step.microbatches):
                self._check_stop()
                with measured.waiting():
                    batch = self._pack(data, micro)
                with accumulating(self.module, number == len(step.microbatches) - 1):
                    self._run(data, micro, batch, facts, scale, measured, untrained=step.number == 0)
            if step.number == 0:
                for part in (data, data.mismatched):
                    if part is not None and part.references is not None:
                        self._share(part.references)
                self._check_first_loss(measured)
            norm = clip_and_step(self.optimizer, self.policy.parameters(), self.options.max_grad_norm)
            self.optimizer.zero_grad(set_to_none=True)
            yield step, measured, {"grad_norm": norm, "learning_rate": rate}

    def _check_first_loss(self, measured: StepMetrics) -> None:
        """Before anything is changed: a policy that is its reference has a loss that is known."""
        expected = self.objective.initial_loss
        found = measured.result(self.processes.sum)["loss"]
        if expected is not None and not abs(found - expected) <= self.first_loss_tolerance:
            raise ClairError(
                f"the first loss is {found:.6g} and must be {expected:.6g}: policy and reference differ "
                "before the first step. Are the cached references of another model, or does the model draw "
                "random numbers? Nothing was changed."
            )

    def _run(
        self,
        data: Data,
        micro: Microbatch,
        batch: Packed,
        facts: StepFacts,
        scale: float,
        measured: StepMetrics,
        *,
        untrained: bool = False,
    ) -> None:
        """One forward pass, and the backward pass if gradients are wanted."""
        device = self.processes.device
        reference = self._reference(data, micro, batch)
        weights = torch.tensor(micro.weights, dtype=torch.float64, device=device)
        counts = [(e.shared + e.chosen, e.shared + e.rejected) for e in batch.entries]
        tokens = torch.tensor(counts, dtype=torch.float64, device=device).T

        def losses(chosen: Tensor, rejected: Tensor, part: slice) -> Tensor:
            own = SequenceLogps(chosen, rejected)
            known = SequenceLogps(reference.chosen[part], reference.rejected[part])
            each = self.objective.losses(
                own,
                _completed(known, own) if untrained else known,
                (tokens[0][part], tokens[1][part]),
                facts,
            )
            return each * weights[part] * scale

        loss, chosen, rejected = self.module(batch, losses)
        if loss.requires_grad:
            loss.backward()
        policy = SequenceLogps(chosen, rejected)
        if untrained:
            reference = self._learnt(data, micro, reference, policy)
        measured.add(
            loss=loss.detach() / self.processes.count,
            policy=policy,
            reference=reference,
            rewards=self.objective.rewards(policy, reference, (tokens[0], tokens[1])),
            tokens=(tokens[0], tokens[1]),
            weights=weights,
            physical=batch.tokens,
            logical=int(data.logical[list(micro.pairs)] @ np.array(micro.weights, np.int64)),
        )

    def _facts(self, data: Data, step: Step) -> StepFacts:
        """What the objective must know of the whole step before its first gradient: the length of its
        chosen answers, and for the KTO forms an estimate of the KL divergence, by a pass without one."""
        members = list(step.members)
        chosen_tokens = float(data.lengths[members, 1].mean())
        if not self.objective.needs_kl:
            return StepFacts(0.0, 0.0, chosen_tokens)
        source = data.mismatched or data
        sums = torch.zeros(3, dtype=torch.float64, device=self.processes.device)
        for micro in step.microbatches:
            self._check_stop()
            batch = self._pack(source, micro)
            _, chosen, rejected = self._scored(self.module, batch)
            reference = self._reference(source, micro, batch)
            if step.number == 0:
                reference = self._learnt(source, micro, reference, SequenceLogps(chosen, rejected))
            weights = torch.tensor(micro.weights, dtype=torch.float64, device=self.processes.device)
            ratios = [chosen - reference.chosen, rejected - reference.rejected, torch.ones_like(weights)]
            sums += torch.stack(ratios) @ weights
        of_chosen, of_rejected, count = self.processes.sum(sums).tolist()
        return StepFacts(max(0.0, of_chosen / count), max(0.0, of_rejected / count), chosen_tokens)

    # --- held-out pairs --------------------------------------------------------------------------

    def evaluate(self, data: Data) -> StepMetrics:
        """Measures all pairs of `data` without a gradient."""
        measured = StepMetrics(with_reference=self.objective.needs_reference)
        total = data.plan.steps_per_epoch
        with torch.no_grad():
            for step in data.plan.steps(0, total, self.processes.rank):
                facts = self._facts(data, step)
                for micro in step.microbatches:
                    self._check_stop()
                    batch = self._pack(data, micro)
                    scale = self.processes.count / len(data.pairs)
                    self._run(data, micro, batch, facts, scale, measured)
        return measured

    # --- small things ----------------------------------------------------------------------------

    def _pack(self, data: Data, micro: Microbatch) -> Packed:
        batch = pack([data.pairs[i] for i in micro.pairs], share=self.policy.share)
        return batch.to(self.processes.device)

    def _check_stop(self, references: References | None = None) -> None:
        """Called by all processes at the same places, so that all stop at the same one: a process that
        stopped by itself would leave the others waiting for it. `references`: those that are computed."""
        if self.processes.soon(self.stop()):
            if references is not None:
                self._share(references)
            self.optimizer.zero_grad(set_to_none=True)
            raise Stopped


def _completed(reference: SequenceLogps, policy: SequenceLogps) -> SequenceLogps:
    """What is not known of the reference (NaN), from the policy that is the reference still."""
    return SequenceLogps(
        torch.where(reference.chosen.isnan(), policy.chosen.detach(), reference.chosen),
        torch.where(reference.rejected.isnan(), policy.rejected.detach(), reference.rejected),
    )
