"""Which way likelihoods go: APO-zero, APO-down and DPO on the same real pairs, measured on held-out ones.

    python benchmarks/likelihoods.py ../shared/data/pairs_stronger_preferred.parquet

Trains the embedded model (`recipes/cpu.yaml`) three times on short pairs of the file, writes one picture
for each objective (`docs/likelihoods-apo-zero.svg`, …), made of its metrics.jsonl, and prints where the
held-out likelihoods ended. Within half an hour on two cores; the curves are in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from clair_apo.train.metrics import read_metrics
from clair_apo.train.page import write_likelihood_svg

ROOT = Path(__file__).resolve().parent.parent
OBJECTIVES = ("apo-zero", "apo-down", "dpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "likelihoods")
    parser.add_argument("--max-length", type=int, default=300, help="tokens of a pair (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=5e-6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command("split", str(args.pairs), "--test", "0.25", "--seed", "0", "--output-dir", str(folder))
        train, test = sorted(folder.glob("*train*"))[0], sorted(folder.glob("*test*"))[0]
        for objective in OBJECTIVES:
            out = folder / objective
            command(
                *("train", "--config", str(ROOT / "recipes" / "cpu.yaml")),
                *("--pairs", str(train), "--eval-pairs", str(test), "--output-dir", str(out)),
                *("--objective", objective, "--max-length", str(args.max_length)),
                *("--num-train-epochs", str(args.epochs), "--learning-rate", str(args.rate)),
                *("--eval-steps", "3"),
            )
            metrics = read_metrics(out / "metrics.jsonl")
            facts = json.loads((out / "train.json").read_text("utf-8"))
            picture = args.output.with_name(f"{args.output.name}-{objective}.svg")
            write_likelihood_svg(picture, metrics, facts)
            last = [record for record in metrics if "eval_loss" in record][-1]
            sides = [last[f"eval_logps/{side}_relative"] for side in ("chosen", "rejected")]
            print(
                f"{objective}: {facts['pairs_used']} pairs, {facts['steps']} steps; held out, nats an "
                f"answer against the reference: chosen {sides[0]:+.2f}, rejected {sides[1]:+.2f}",
                flush=True,
            )


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "clair_apo.cli", *words], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
