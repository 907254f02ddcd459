"""One training run from flags to a folder: what comes in which order."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clair_apo.errors import EXIT_INTERRUPTED, ClairError, StoppedEarly, UsageError
from clair_apo.terminal import one_line
from clair_apo.train import checkpoint, launch, shards
from clair_apo.train.checkpoint import Checkpoints, Progress
from clair_apo.train.guard import Stop, alone, in_words, last_checkpoint
from clair_apo.train.kernels.layers import install
from clair_apo.train.launch import Processes
from clair_apo.train.load import (
    check_model,
    kernels,
    load_for_run,
    load_tokenizer,
)
from clair_apo.train.loop import Data, Loop, Stopped
from clair_apo.train.memory.account import Spread
from clair_apo.train.memory.command import longest_packed, longest_sequence
from clair_apo.train.memory.model import read_config
from clair_apo.train.memory.plan import MOST_TOKENS, find_room, plan_memory
from clair_apo.train.metrics import MetricsFile, StepMetrics, mfu
from clair_apo.train.objectives import Objective, ObjectiveOptions
from clair_apo.train.optim import make_optimizer
from clair_apo.train.options import LOWEST_BF16_RATE, TrainOptions
from clair_apo.train.outputs import Facts, finish, hardware, now, versions, write_dropped
from clair_apo.train.packing import packed_tokens
from clair_apo.train.plan import Plan
from clair_apo.train.policy import Policy
from clair_apo.train.reference import Key, References
from clair_apo.train.tokens import Mismatched, Tokenised, TokenPairs, check_vocabulary, tokenise
from clair_apo.train.view import View

if TYPE_CHECKING:
    from clair_apo.train.kernels.layers.install import Installed

# What may change from one start of a run to the next: how it is shown and saved, and what gives the same
# steps in another way.
FREE = {
    *("output_dir", "resume", "save_steps", "save_total_limit", "logging_steps", "eval_pairs"),
    *("eval_steps", "report_to", "push_to_hub", "tokens_per_microbatch", "activation_budget"),
    *("attention", "kernels", "no_share", "sharding", "reference"),
    *("model", "pairs"),  # what they hold is compared, not where they lie
}
# Nats a token that two ways of computing the same log-probability may differ by, and how far the first loss
# may lie from theory.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
FIRST_LOSS = {torch.float32: 1e-3, torch.bfloat16: 0.05}


def train(options: TrainOptions) -> dict[str, Any]:
    """Trains, and writes the model and what there is to know about the run to `options.output_dir`.

    Returns: what train.json holds. Raises: UsageError for settings that cannot be meant; ClairError where
    it cannot go on, with what to change, and with exit status 130 or 3 where it was asked to stop, which
    leaves a checkpoint.
    """
    options.check()
    processes = launch.start(options)
    with Stop() as stop, in_words(options), alone(options.directory, processes):
        return _Run(options, processes, stop).run()


class _Run:
    def __init__(self, options: TrainOptions, processes: Processes, stop: Stop) -> None:
        self.options, self.processes, self.stop = options, processes, stop
        self.view = View(quiet=options.quiet or not processes.first)
        self.checkpoints = Checkpoints(options.directory / "checkpoints", options.save_total_limit)
        self.cuda = processes.device.type == "cuda"
        bf16 = options.in_bfloat16(cuda=self.cuda)
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.split = bf16 and not options.allow_bf16_updates
        self.low: dict[str, torch.Tensor] | None = None  # what trained weights lack of float32, by name
        # Adapters are float32; their products need not be.
        self.autocast = torch.bfloat16 if bf16 and self.cuda and options.lora_rank else None
        self.kernels, why = kernels(options, processes.device)
        if why is not None:
            self.view.say(f"kernels are {self.kernels}: {why}")
        self.layers: Installed | None = None

    def run(self) -> dict[str, Any]:
        resumed = self._resumed()
        self.options = options = self._with_objective()
        tokenizer = load_tokenizer(options.model)
        objective = Objective(ObjectiveOptions.of(options))
        found = self._tokens(options.pairs, tokenizer, objective)
        held_out = self._tokens(options.eval_pairs, tokenizer, objective) if options.eval_pairs else None
        longest = max(longest_sequence(f.pairs) for f in (found, held_out) if f is not None)
        if self.cuda:
            self.options = options = self._with_budgets(found, held_out, longest, resumed)

        policy = self._policy(tokenizer, found.pairs, longest, train=True)
        wants_reference = objective.needs_reference
        cached = self.model_hash if wants_reference and options.reference == "cached" else None
        data = self._data(found.pairs, policy, objective, cached)
        evaluation = self._data(held_out.pairs, policy, objective, cached) if held_out else None
        steps = data.plan.steps_per_epoch * options.num_train_epochs
        steps = min(steps, options.max_steps or steps)
        facts = self._facts(found, objective, steps)
        if resumed:
            checkpoint.check_settings(resumed, self._settings(facts))
        if self.processes.first:
            facts.write(options.directory)
            write_dropped(options.directory, found.dropped)
        self.view.header(asdict(facts))
        self.view.samples(found.pairs, tokenizer)
        if options.allow_bf16_updates and options.learning_rate < LOWEST_BF16_RATE:
            self.view.say(
                f"bare bfloat16 weights at a rate of {options.learning_rate:g}: most steps are smaller "
                "than half the gap between two bf16 numbers and change nothing"
            )
        module = launch.wrap(policy, options, self.processes)
        optimizer = make_optimizer(
            policy.named_parameters(),
            options,
            self.low,
            fused=self.kernels == "fused",
        )
        self.low = None  # the optimiser has its own
        if not resumed:
            shortest = found.pairs[int(np.argmin(data.plan.tokens))]
            tolerance = TOLERANCE[self.autocast or self.dtype]
            check_model(policy, shortest, tolerance, self.layers)
        live = None
        if wants_reference and cached is None:
            live = module
            if not options.lora_rank:
                other = self._policy(tokenizer, found.pairs, longest, train=False)
                live = launch.wrap(other, options, self.processes)
        loop = Loop(
            options,
            objective,
            policy,
            module,
            optimizer,
            self.processes,
            live=live,
            first_loss_tolerance=FIRST_LOSS[self.autocast or self.dtype],
            stop=self.stop.asked,
        )
        began = time.monotonic()
        self._references(loop, data, evaluation, 0 if resumed else 1, steps)
        facts.seconds["references"] = time.monotonic() - began
        progress = Progress(0, 0, 0.0)
        if resumed:
            progress = checkpoint.load(resumed, policy, optimizer)
        progress = self._steps(loop, data, evaluation, progress, steps, facts)
        facts.seconds["steps"] = progress.seconds
        return finish(policy, tokenizer, facts, options, self.processes, self.view)

    # --- what a run needs ------------------------------------------------------------------------

    def _resumed(self) -> Any:
        """The checkpoint to go on from; None for a new run."""
        options = self.options
        if options.resume is not None:
            found = self.checkpoints.find(options.resume)
            if found is None:
                self.view.say(f"{options.output_dir} holds no checkpoint: this run begins anew")
            return found
        if (options.directory / "metrics.jsonl").exists():
            raise UsageError(
                f"{one_line(options.output_dir)} holds a run already: --resume goes on with it; a new one "
                "takes another --output-dir"
            )
        return None

    def _with_objective(self) -> TrainOptions:
        """`auto` replaced by what the evidence of the table says."""
        if self.options.objective != "auto":
            return self.options
        from clair_apo.train.advise import advise

        advice = advise(self.options.pairs, self.options.model)
        self.view.say(advice.text())
        chosen = replace(self.options, objective=advice.objective)
        chosen.check()
        return chosen

    def _with_budgets(
        self, found: Tokenised, held_out: Tokenised | None, longest: int, resumed: Any
    ) -> TrainOptions:
        """Tokens of a microbatch and of activations that are kept: as given, as a run that goes on had
        them, or as they fit."""
        options = self.options
        if resumed:
            options = _before(options)
        if options.tokens_per_microbatch and options.activation_budget:
            return options
        tables = [table.pairs for table in (found, held_out) if table is not None]
        config = read_config(options.model)
        room = find_room(options.plan_memory)
        room = replace(room, size=self.processes.least(room.size))
        spread = Spread(self.processes.count, launch.sharded(options, self.processes))
        size = longest_packed(tables, options, config, longest)
        try:
            plan = plan_memory(options, config, size, room, spread, longest)
        except ClairError as error:
            most = options.tokens_per_microbatch or max(size, MOST_TOKENS["cuda"])
            self.view.say(f"{error}. --tokens-per-microbatch is {most}; lower it if memory is short")
            return replace(
                options, tokens_per_microbatch=most, activation_budget=options.activation_budget or most
            )
        choice = plan.choice
        if choice is None:
            self.view.say(f"{plan.why()} It is tried all the same, with every layer run twice.")
            return replace(
                options,
                tokens_per_microbatch=options.tokens_per_microbatch or plan.longest,
                activation_budget=options.activation_budget or 1,
            )
        self.view.say(plan.line())
        return replace(options, tokens_per_microbatch=choice.tokens, activation_budget=choice.budget)

    def _tokens(self, file: str, tokenizer: Any, objective: Objective) -> Tokenised:
        options = self.options
        with self.view.bar("tokens") as advance:
            found = tokenise(
                file,
                tokenizer,
                max_length=options.max_length,
                max_prompt_length=options.max_prompt_length,
                unpaired=objective.unpaired,
                plain_text=options.plain_text,
                on_progress=advance,
            )
        if file == options.pairs:
            for note in found.notes:
                self.view.say(note)
        return found

    def _policy(self, tokenizer: Any, pairs: TokenPairs, longest: int, *, train: bool) -> Policy:
        """The policy, or the reference, on this process's device: whole, or sharded already."""
        options, processes = self.options, self.processes
        sharded = launch.sharded(options, processes)
        load = partial(
            load_for_run, options, self.dtype, longest, processes.device, split=self.split, train=train
        )
        loaded = shards.load_once(load, processes) if sharded else load()
        model = loaded.model
        check_vocabulary(tokenizer, model.get_output_embeddings().weight.shape[0], pairs)
        policy = Policy(
            model,
            share=loaded.shares,
            budget=self._activation_budget(),
            autocast=self.autocast,
            fused_head=self.kernels == "fused",
            remake=self.processes.device.type == "cuda",
        )
        policy.train(train).requires_grad_(train and not options.lora_rank)
        if options.lora_rank and train:
            for name, parameter in policy.named_parameters():
                parameter.requires_grad_("lora_" in name)
        layers = None if self.kernels == "plain" else install.makes(self.kernels)
        low: Mapping[str, torch.Tensor | None] = loaded.low
        installed = None
        if sharded:
            low, installed = shards.spread(policy, low, processes, layers)
        else:
            policy = policy.to(processes.device)
            if layers is not None:
                installed = install.install(policy.causal_lm, layers, self.autocast)
        if train:
            self.model_hash, self.parameters, self.layers = loaded.hash, loaded.parameters, installed
            if self.split and not options.lora_rank:
                self.low = {name: bits for name, bits in low.items() if bits is not None}
            if loaded.unshared is not None:
                self.view.say(f"prefixes are not shared: {loaded.unshared}")
            if installed is not None:
                self.view.say(installed.text())
        return policy

    def _budget(self) -> int:
        return self.options.tokens_per_microbatch or MOST_TOKENS["cpu"]

    def _activation_budget(self) -> int:
        return self.options.activation_budget or self._budget()

    def _data(self, pairs: TokenPairs, policy: Policy, objective: Objective, weights: str | None) -> Data:
        """`weights`: the hash of the reference's, where its log-probabilities are cached."""
        options = self.options

        def planned(some: Any) -> Data:
            tokens = [packed_tokens(some[i], share=policy.share) for i in range(len(some))]
            plan = Plan(tokens, options.batch_size, self._budget(), options.seed, self.processes.count)
            computed = f"{self.autocast or self.dtype} {self.kernels} {policy.config._attn_implementation}"
            key = weights and Key(weights, computed)
            references = References(key, some.hashes()) if key else None
            return Data(some, plan, references)

        data = planned(pairs)
        if objective.needs_mismatched:
            # Planned as the pairs themselves are: a microbatch of the one is a microbatch of the other.
            other = planned(Mismatched(pairs))
            data.mismatched = Data(other.pairs, data.plan, other.references)
        return data

    def _references(self, loop: Loop, data: Data, evaluation: Data | None, first: int, steps: int) -> None:
        parts = [(data, first, steps), (data.mismatched, first, steps)]
        if evaluation is not None:
            every = evaluation.plan.steps_per_epoch
            parts += [(evaluation, 0, every), (evaluation.mismatched, 0, every)]
        try:
            for part, begin, end in parts:
                if part is not None and part.references is not None:
                    with self.view.bar("reference") as advance:
                        loop.find_references(part, begin, end, advance)
        except Stopped:
            raise self._stopped("in the reference pass; what was computed is kept") from None

    def _facts(self, found: Tokenised, objective: Objective, steps: int) -> Facts:
        options = self.options
        return Facts(
            model=options.model,
            model_hash=self.model_hash,
            pairs=options.pairs,
            pairs_hash=found.pairs.content_hash(),
            rows=found.rows,
            pairs_used=len(found.pairs),
            dropped=found.counts(),
            end_of_turn=found.end_of_turn,
            pinned_date=found.pinned_date,
            objective=options.objective,
            initial_loss=objective.initial_loss,
            steps=steps,
            settings=options.as_dict(),
            weights=self._weights(),
            processes=self.processes.count,
            hardware=hardware(self.processes.device),
            versions=versions(),
            started_at=now(),
        )

    def _settings(self, facts: Facts) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on."""
        own = {name: value for name, value in self.options.as_dict().items() if name not in FREE}
        found = {"pairs_hash": facts.pairs_hash, "model_hash": facts.model_hash, "weights": facts.weights}
        return {**own, **found}

    def _weights(self) -> str:
        """How they are held, in words."""
        kind = str(self.dtype).removeprefix("torch.")
        if self.options.lora_rank:
            return f"{kind}, adapters in float32"
        if self.split:
            moments = "8-bit" if self.options.moments == "8bit" else "float32"
            return f"{kind} with 16 low bits (exact float32), {moments} moments"
        return kind

    # --- steps -----------------------------------------------------------------------------------

    def _steps(
        self,
        loop: Loop,
        data: Data,
        evaluation: Data | None,
        progress: Progress,
        steps: int,
        facts: Facts,
    ) -> Progress:
        options, processes = self.options, self.processes
        every = options.eval_steps or max(1, steps // 10)
        file = MetricsFile(options.directory / "metrics.jsonl", after=progress.step, write=processes.first)
        trackers = launch.Trackers(options, processes)
        since, before = time.monotonic(), progress.seconds
        tokens, saved = progress.num_tokens, progress.step

        def new_metrics() -> StepMetrics:
            return StepMetrics(with_reference=loop.objective.needs_reference)

        def save(progress: Progress, norm: Any) -> None:
            # Between logged steps nobody looks; weights that are none make every later norm none.
            _check_finite({"step": progress.step, "grad_norm": float(norm)}, options)
            self.checkpoints.save(progress, loop.policy, loop.optimizer, self._settings(facts))

        gathered = new_metrics()
        with file, trackers, self.view.training(steps, progress.step) as show:
            try:
                for step, measured, extras in loop.train(data, progress.step, steps):
                    done = step.number + 1
                    tokens += int(data.logical[list(step.members)].sum())
                    gathered.merge(measured)
                    seconds = before + time.monotonic() - since
                    progress = Progress(done, tokens, seconds)
                    logged = done % options.logging_steps == 0 or done == steps
                    if logged:
                        found = gathered.result(processes.sum)
                        if self.cuda:
                            name, rate = facts.hardware, found["tokens_per_second"]
                            found["mfu"] = mfu(rate, self.parameters, name, processes.count)
                        record = {
                            "step": done,
                            "epoch": done / data.plan.steps_per_epoch,
                            **found,
                            "grad_norm": float(extras["grad_norm"]),
                            "learning_rate": extras["learning_rate"],
                            "num_tokens": tokens,
                            "seconds": seconds,
                        }
                        _check_finite(record, options)
                        for sink in (file.write, trackers.log, show):
                            sink(record)
                    if evaluation is not None and (done % every == 0 or done == steps):
                        found = loop.evaluate(evaluation).result(processes.sum)
                        record = {"step": done, **{f"eval_{k}": v for k, v in found.items()}}
                        for sink in (file.write, trackers.log, show):
                            sink(record)
                    if (options.save_steps and done % options.save_steps == 0) or done == steps:
                        save(progress, extras["grad_norm"])
                        saved = done
                    if logged:  # anew here: evaluation and saving are no part of the next step's time
                        gathered = new_metrics()
            except Stopped:
                if saved < progress.step:
                    save(progress, extras["grad_norm"])
                raise self._stopped(f"after step {progress.step} of {steps}") from None
        return progress

    def _stopped(self, where: str) -> ClairError:
        said = f"stopped {where}. --resume goes on from there."
        if self.stop.by_user:
            return ClairError(said, EXIT_INTERRUPTED)
        return StoppedEarly(said)


def _before(options: TrainOptions) -> TrainOptions:
    """With the budgets that the run had: others would add up gradients in another order."""
    try:
        settings = json.loads((options.directory / "train.json").read_text("utf-8"))["settings"]
        had = {name: settings[name] for name in ("tokens_per_microbatch", "activation_budget")}
    except (OSError, ValueError, KeyError, TypeError):
        return options
    return replace(options, **{name: getattr(options, name) or value for name, value in had.items()})


def _check_finite(record: dict[str, Any], options: TrainOptions) -> None:
    for name in ("loss", "grad_norm"):
        if not np.isfinite(record.get(name, 0.0)):
            raise ClairError(
                f"the {name} of step {record['step']} is {record[name]}: nothing of this step was saved. A "
                "lower --learning-rate or --max-grad-norm, or --dtype float32, may help. "
                f"{last_checkpoint(options)}"
            )
