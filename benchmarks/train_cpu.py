"""Training on a CPU beside TRL's DPOTrainer: pairs per second, peak memory, and whether the numbers agree.

    python benchmarks/train_cpu.py --data ../shared/data
    python benchmarks/train_cpu.py --runs ours,trl --steps 1 --json > figures.json

SmolLM2-135M-Instruct (the embedded model), float32, APO-zero, on the first pairs of
`pairs_revision.parquet`. Each run is a process of its own:

- ours: `clair-apo train` as it is, its cache of references empty, so its pass over the reference counts
- trl: DPOTrainer with its defaults (a live reference, gradient checkpointing, 1,024 tokens)
- trl-tuned: the quickest that it can be set to on a CPU: references computed before, no checkpointing
- trl-same, ours-same: batches of the same tokens in both (2,048), to compare losses, gradient norms and
  log-probabilities step by step, at a rate at which these move

Seconds are those of training, the reference's pass included, without imports and loading. Memory is the
peak resident set of the process. Needs the `dev` extra; about fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RUNS = ("ours", "trl", "trl-tuned", "ours-same", "trl-same")
COMPARED = {
    "loss": 1e-4,
    "grad_norm": 1e-4,
    "logps/chosen": 1e-4,
    "logps/rejected": 1e-4,
}


@dataclass
class Work:
    data: Path
    steps: int
    batch: int
    folder: Path

    @property
    def rows(self) -> int:
        return self.steps * self.batch

    def pairs(self, rows: int) -> Path:
        """The first rows whose answers differ, in a file."""
        import pyarrow.parquet as pq

        table = pq.read_table(self.data / "pairs_revision.parquet")
        differ = [i for i, row in enumerate(table.to_pylist()) if row["chosen"] != row["rejected"]]
        path = self.folder / f"pairs-{rows}.parquet"
        pq.write_table(table.take(differ[:rows]), path)
        return path


def trl(work: Work, name: str) -> dict[str, Any]:
    """Runs in a process of its own."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    from clair_apo.llm.local import embedded_folder

    same = name == "trl-same"
    rows = Dataset.from_parquet(str(work.pairs(work.batch if same else work.rows)))
    model = str(embedded_folder())
    settings: dict[str, Any] = {}
    if name == "trl-tuned":
        settings = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
    if same:
        settings = {"max_length": 2048, "learning_rate": 1e-5, "num_train_epochs": work.steps}
        settings |= {"gradient_checkpointing": False, "lr_scheduler_type": "constant"}
    else:
        settings |= {"learning_rate": 2e-7, "max_steps": work.steps}
    config = trl.DPOConfig(
        output_dir=str(work.folder / name),
        per_device_train_batch_size=work.batch,
        loss_type="apo_zero",
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": torch.float32},
        **settings,
    )
    conversations = rows.map(conversational, remove_columns=rows.column_names)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if same:
        # TRL scores the line feed that the template writes behind an answer's end of turn, and we do not.
        template = tokenizer.chat_template
        end = "('' if loop.last and message['role'] == 'assistant' else '\n')"
        tokenizer.chat_template = template.replace("'<|im_end|>' + '\n'", f"'<|im_end|>' + {end}")
        assert tokenizer.chat_template != template
    start = time.perf_counter()
    trainer = trl.DPOTrainer(
        model=model, args=config, train_dataset=conversations, processing_class=tokenizer
    )
    loaded = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - (start if name == "trl-tuned" else loaded)
    return {"seconds": seconds, "log": [e for e in trainer.state.log_history if "loss" in e]}


def conversational(row: dict[str, Any]) -> dict[str, Any]:
    def said(value: Any, role: str) -> list[dict[str, str]]:
        return [{"role": role, "content": value}] if isinstance(value, str) else value

    return {
        "prompt": said(row["prompt"], "user"),
        "chosen": said(row["chosen"], "assistant"),
        "rejected": said(row["rejected"], "assistant"),
    }


def ours(work: Work, name: str) -> dict[str, Any]:
    from clair_apo.cli import main as clair_apo
    from clair_apo.llm.local import embedded_folder

    same = name == "ours-same"
    out = work.folder / name
    # The references of a run before would save us a pass.
    os.environ["XDG_CACHE_HOME"] = str(work.folder / f"cache of {name}")
    flags = ["--model", embedded_folder(), "--pairs", work.pairs(work.batch if same else work.rows)]
    flags += ["--output-dir", out, "--batch-size", work.batch, "--quiet"]
    if same:
        flags += ["--learning-rate", 1e-5, "--num-train-epochs", work.steps]
        flags += ["--lr-scheduler-type", "constant"]
    if status := clair_apo(["train", *map(str, flags)]):
        raise SystemExit(status)
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timing = json.loads((out / "train.json").read_text())["seconds"]
    return {"seconds": timing["references"] + timing["steps"], "log": log}


def measured(work: Work, name: str) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--run",
        name,
        "--data",
        str(work.data),
        "--folder",
        str(work.folder),
    ]
    command += ["--steps", str(work.steps), "--batch", str(work.batch)]
    print(f"{name} …", file=sys.stderr, flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_gib() -> float:
    """Of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="pairs a step (%(default)s)")
    parser.add_argument("--runs", default=",".join(RUNS), help="some of %(default)s")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        work = Work(args.data, args.steps, args.batch, args.folder)
        result = (ours if args.run.startswith("ours") else trl)(work, args.run)
        print(json.dumps({**result, "peak_gib": peak_gib()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Work(args.data, args.steps, args.batch, Path(folder))
        found = {name: measured(work, name) for name in args.runs.split(",")}
    for run in found.values():
        run["pairs_per_second"] = work.rows / run["seconds"]
    agreement = compare(found)
    if args.json:
        print(json.dumps({"runs": found, "agreement": agreement}))
        return
    report(work, found, agreement)


def compare(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The largest relative difference of each number over the steps of the runs on the same batches."""
    if not {"ours-same", "trl-same"} <= found.keys():
        return {}
    steps = list(zip(found["ours-same"]["log"], found["trl-same"]["log"], strict=True))
    return {
        name: max(abs(float(a[name]) - float(b[name])) / abs(float(b[name])) for a, b in steps)
        for name in COMPARED
    }


def report(work: Work, found: dict[str, dict[str, Any]], agreement: dict[str, float]) -> None:
    packages = ", ".join(f"{p} {version(p)}" for p in ("clair-apo", "trl", "torch", "transformers"))
    print(f"{platform.machine()}, {os.cpu_count()} cores; {packages}")
    print(f"{work.steps} steps of {work.batch} pairs\n")
    print(f"{'run':12}{'seconds':>9}{'pairs/s':>9}{'peak GiB':>10}")
    for name, run in found.items():
        print(f"{name:12}{run['seconds']:9.1f}{run['pairs_per_second']:9.3f}{run['peak_gib']:10.1f}")
    if "ours" in found:
        print()
        for peer in ("trl", "trl-tuned"):
            if peer in found:
                speed = found["ours"]["pairs_per_second"] / found[peer]["pairs_per_second"]
                memory = found["ours"]["peak_gib"] / found[peer]["peak_gib"]
                print(f"ours against {peer}: {speed:.2f}x the pairs/s, {memory:.2f}x the memory")
    for name, difference in agreement.items():
        word = "within" if difference <= COMPARED[name] else "BEYOND"
        print(f"{name}: largest relative difference {difference:.1e}, {word} {COMPARED[name]:g}")


if __name__ == "__main__":
    main()
