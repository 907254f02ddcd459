"""An 8B-shaped model with random weights: peak memory, tokens/s, MFU and pairs/s, beside TRL's DPOTrainer.

Every run is a process of its own on the same pairs:

- ours: our loop (cached references, shared prefixes, what the plan of memory picks), full weights
- trl: DPOTrainer with its defaults (float32 weights, a live reference, gradient checkpointing)
- trl-tuned: bf16 weights, references computed before, gradient checkpointing, its best batch that fits

TRL's defaults need about 150 GiB for 8B, so on one GPU of 80 GB they end out of memory, which is noted as
such, and all three run once more at about 1B, where the pairs/s of all can be compared. References count
for both sides apart from the steps: the goals are about steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import DEVICE, GIB, QUICK, SMALL, Missing, Part, part
from inputs import embedded, pairs_file, shape_of_8b

STEPS, BATCH = (2, 4) if SMALL else (3, 16) if QUICK else (6, 64)
SIZES = ("8B",) if SMALL else ("8B", "1B")
SECONDS = 180 if QUICK else 400  # of one run


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
        for size in SIZES:
            report(
                found,
                size,
                {run: measured(found, run, size, pairs) for run in ("ours", "trl", "trl-tuned")},
            )


def measured(found: Part, run: str, size: str, pairs: Path) -> dict[str, Any] | None:
    """One run in a process of its own; None where it failed, which is noted."""
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

    found.peer(size, run, once)
    return result or None


def report(found: Part, size: str, runs: dict[str, dict[str, Any] | None]) -> None:
    for who, run in runs.items():
        if run is None:
            continue
        eight = who == "ours" and size == "8B"
        if DEVICE == "cuda":
            found.figure(f"{size}: peak", who, run["peak_gib"], "GiB", ("<=", 74.0) if eight else None)
        found.figure(f"{size}: pairs", who, run["pairs_per_second"], "pairs/s")
        if who == "ours":
            found.figure(
                f"{size}: tokens",
                who,
                run["tokens_per_second"],
                "tokens/s",
                (">=", 11_000) if eight else None,
            )
            if run["mfu"] is not None:
                found.figure(f"{size}: MFU", who, 100 * run["mfu"], "%")
            found.figure(f"{size}: planned peak", who, run["planned_gib"], "GiB")
    for peer, goal in (("trl", 3.0), ("trl-tuned", 2.0)):
        own, theirs = runs["ours"], runs[peer]
        if own and theirs:
            ratio = own["pairs_per_second"] / theirs["pairs_per_second"]
            found.figure(f"{size}: pairs/s against {peer}", "ours", ratio, "x", (">=", goal))


def config_of(size: str) -> Any:
    config = shape_of_8b()
    if size == "1B":
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
    tuned = name == "trl-tuned"
    settings: dict[str, Any] = {}
    if tuned:
        settings = {"precompute_ref_log_probs": True, "gradient_checkpointing": True, "max_length": 2048}
    each = 4
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
