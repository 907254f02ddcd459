"""An 8B-shaped model with random weights: peak memory, tokens/s, MFU and pairs/s, beside TRL's DPOTrainer.

Every run is a process of its own on the same pairs:

- ours: our loop (cached references, shared prefixes, what the plan of memory picks), full weights
- trl: DPOTrainer with its defaults (float32 weights, a live reference, gradient checkpointing)
- trl-tuned-N: bf16 weights, references computed before, gradient checkpointing, N pairs a microbatch, with
  Liger's layers where its name says so

All of them run at about 1B, which says which setting is TRL's best; 8B takes that one, and half of its
microbatch until it fits. TRL's defaults need about 150 GiB for 8B, so on one GPU of 80 GB they end out of
memory, which is noted as such. References count for both sides apart from the steps: the goals are about
steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import DEVICE, GIB, QUICK, SMALL, Missing, Part, needs, part
from inputs import embedded, pairs_file, shape_of_8b

STEPS, BATCH = (2, 4) if SMALL else (3, 16) if QUICK else (6, 64)
SECONDS = 180 if QUICK else 400  # of one run
GOALS = {"trl": 3.0, "trl-tuned": 2.0}  # our pairs/s against theirs
Result = dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Tuned:
    """A setting of TRL: so many pairs a microbatch, with Liger's layers or without."""

    each: int
    liger: bool

    def __str__(self) -> str:
        return f"trl-tuned-{self.each}{'-liger' if self.liger else ''}"

    @classmethod
    def named(cls, name: str) -> Tuned:
        return cls(int(name.split("-")[2]), name.endswith("-liger"))


TUNED = [Tuned(each, liger) for each in ((4,) if SMALL or QUICK else (4, 8)) for liger in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run")
    parser.add_argument("--size", default="8B")
    parser.add_argument("--pairs", type=Path)
    args = parser.parse_args()
    if args.run:
        found = ours(args.size, args.pairs) if args.run == "ours" else trl(args.run, args.size, args.pairs)
        print(json.dumps(found))
        return
    with part("model") as found, tempfile.TemporaryDirectory() as name:
        embedded()  # its tokenizer, or Missing
        pairs = pairs_file(Path(name), STEPS * BATCH)

        def run(who: object, size: str) -> Result:
            return measured(found, str(who), size, pairs)

        own = {size: run("ours", size) for size in ("8B", "1B")}
        against(found, "1B", "trl", own["1B"], run("trl", "1B"))
        tuned = {setting: run(setting, "1B") for setting in TUNED}
        best = max(
            TUNED, key=lambda setting: (tuned[setting] or {"pairs_per_second": 0})["pairs_per_second"]
        )
        against(found, "1B", "trl-tuned", own["1B"], tuned[best])
        against(found, "8B", "trl", own["8B"], run("trl", "8B"))
        # Where it did not run at 1B, it is not memory that it lacks.
        each, result = best.each if tuned[best] else 0, None
        while each and (result := run(Tuned(each, best.liger), "8B")) is None:
            each //= 2
        against(found, "8B", "trl-tuned", own["8B"], result)


def measured(found: Part, run: str, size: str, pairs: Path) -> Result:
    """One run in a process of its own, and its figures; None where it failed, which is noted."""
    command = [sys.executable, __file__, "--run", run, "--size", size, "--pairs", str(pairs)]
    result: dict[str, Any] = {}

    def once() -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {SECONDS} s") from None
        if done.returncode:
            said = done.stderr.strip().splitlines()
            oom = next((line for line in said if "OutOfMemory" in line or "out of memory" in line), None)
            raise (Missing if "No module" in done.stderr else RuntimeError)(
                oom or "; ".join(said[-2:])[-300:]
            )
        result.update(json.loads(done.stdout.splitlines()[-1]))
        figures(found, run, size, result)

    found.peer(size, run, once)
    return result or None


def figures(found: Part, who: str, size: str, run: dict[str, Any]) -> None:
    eight = who == "ours" and size == "8B"
    if DEVICE == "cuda":
        found.figure(f"{size}: peak", who, run["peak_gib"], "GiB", ("<=", 74.0) if eight else None)
    found.figure(f"{size}: pairs", who, run["pairs_per_second"], "pairs/s")
    if who == "ours":
        goal = (">=", 11_000.0) if eight else None
        found.figure(f"{size}: tokens", who, run["tokens_per_second"], "tokens/s", goal)
        if run["mfu"] is not None:
            found.figure(f"{size}: MFU", who, 100 * run["mfu"], "%")
        found.figure(f"{size}: planned peak", who, run["planned_gib"], "GiB")


def against(found: Part, size: str, peer: str, own: Result, theirs: Result) -> None:
    if own and theirs:
        ratio = own["pairs_per_second"] / theirs["pairs_per_second"]
        found.figure(f"{size}: pairs/s against {peer}", "ours", ratio, "x", (">=", GOALS[peer]))


def config_of(size: str) -> Any:
    config = shape_of_8b()
    if size == "1B" and not SMALL:
        config.update({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16})
        config.update({"head_dim": 64})
    return config


def random_model(size: str, dtype: Any) -> Any:
    """With weights of the usual size, made on the device."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config_of(size), dtype=dtype)


def ours(size: str, pairs: Path) -> dict[str, Any]:
    """The parts of `clair-apo train` but reading, hashing and writing a model."""
    import torch
    from transformers import AutoTokenizer

    from clair_apo.train import launch
    from clair_apo.train.loop import Data, Loop
    from clair_apo.train.memory.plan import Precision
    from clair_apo.train.metrics import mfu
    from clair_apo.train.objectives import Objective, ObjectiveOptions
    from clair_apo.train.optim import make_optimizer
    from clair_apo.train.options import TrainOptions
    from clair_apo.train.packing import packed_tokens
    from clair_apo.train.plan import Plan
    from clair_apo.train.reference import Key, References
    from clair_apo.train.tokens import tokenise

    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions("random", str(pairs), folder, batch_size=BATCH, quiet=True)
        processes = launch.start(options)
        objective = Objective(ObjectiveOptions.of(options))
        table = tokenise(
            pairs, AutoTokenizer.from_pretrained(embedded()), max_length=options.max_length
        ).pairs
        tokens = [packed_tokens(table[i]) for i in range(len(table))]
        policy, budget, planned = ready(size, options, max(tokens), processes.device)
        plan = Plan(tokens, BATCH, budget, 0)
        references = References(Key("random", "bf16"), table.hashes(), Path(folder))
        data = Data(table, plan, references)
        # Random weights are bf16 numbers as they are: no low bits are lost.
        low: Any = {} if Precision.of(options, processes.device).split else None
        optimizer = make_optimizer(policy.named_parameters(), options, low, fused=DEVICE == "cuda")
        loop = Loop(options, objective, policy, policy, optimizer, processes, first_loss_tolerance=0.05)
        steps = min(STEPS, plan.steps_per_epoch)
        began = time.perf_counter()
        loop.find_references(data, 0, steps, lambda *_: None)
        referenced = time.perf_counter() - began
        count, seconds, pairs_done = 0.0, 0.0, 0
        last = time.perf_counter()
        for step, measured, extras in loop.train(data, 0, steps):
            float(extras["grad_norm"])  # waits for the device
            now = time.perf_counter()
            if step.number:  # the first one compiles and finds its buffers
                seconds += now - last
                pairs_done += len(step.members)
                count += measured.result(processes.sum)["tokens"]
            last = time.perf_counter()
        rate = count / seconds
        peak = torch.cuda.max_memory_allocated() / GIB if DEVICE == "cuda" else 0.0
        gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else ""
        return {
            "pairs_per_second": pairs_done / seconds,
            "tokens_per_second": rate,
            "mfu": mfu(rate, sum(p.numel() for p in policy.parameters()), gpu),
            "peak_gib": peak,
            "planned_gib": planned / GIB,
            "reference_seconds": referenced,
        }


def ready(size: str, options: Any, longest: int, device: Any) -> tuple[Any, int, int]:
    """The policy on its device, the tokens of a microbatch, and the peak that was planned, in bytes."""
    from clair_apo.train import attention
    from clair_apo.train.kernels.layers.install import install, makes
    from clair_apo.train.load import kernels, sharing
    from clair_apo.train.memory.account import Spread
    from clair_apo.train.memory.plan import Precision, Room, find_room, plan_memory
    from clair_apo.train.policy import Policy, without_dropout

    room = find_room(None) if DEVICE == "cuda" else Room(device, 8 * GIB, "a CPU")
    plan = plan_memory(options, config_of(size), longest, room, Spread())
    plan.check()
    assert plan.choice is not None
    attention.register()
    model = random_model(size, Precision.of(options, device).dtype)
    without_dropout(model)
    sharing(model, options, longest, device)
    make, _ = kernels(options, device)
    policy = Policy(model, budget=plan.choice.budget, fused_head=make == "fused")
    if make != "plain":
        print(install(policy.causal_lm, makes(make)).text(), file=sys.stderr)
    return policy.train().to(device), plan.choice.tokens, plan.peak


def trl(name: str, size: str, pairs: Path) -> dict[str, Any]:
    """DPOTrainer on the same pairs; its own count of steps and seconds."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    said = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]
    tuned = None if name == "trl" else Tuned.named(name)
    settings: dict[str, Any] = {}
    if tuned:
        settings = {"precompute_ref_log_probs": True, "gradient_checkpointing": True, "max_length": 2048}
        if tuned.liger:
            needs("liger_kernel", "liger-kernel")
            settings["use_liger_kernel"] = True
    each = tuned.each if tuned else 4
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = trl.DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=each,
            gradient_accumulation_steps=max(1, BATCH // each),
            max_steps=STEPS,
            loss_type="apo_zero",
            learning_rate=2e-7,
            report_to=[],
            use_cpu=DEVICE == "cpu",
            bf16=DEVICE == "cuda",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            **settings,
        )
        trainer = trl.DPOTrainer(
            model=random_model(size, torch.bfloat16 if tuned and DEVICE == "cuda" else torch.float32),
            ref_model=None if tuned else random_model(size, torch.float32),
            args=config,
            train_dataset=Dataset.from_list(said),
            processing_class=AutoTokenizer.from_pretrained(embedded()),
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = times[-1] - times[0]
    peak = torch.cuda.max_memory_allocated() / GIB if DEVICE == "cuda" else 0.0
    return {"pairs_per_second": (len(times) - 1) * BATCH / seconds, "peak_gib": peak}


if __name__ == "__main__":
    main()
