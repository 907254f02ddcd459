"""Which way likelihoods go: APO-zero, APO-down and DPO on the same real pairs, measured on held-out ones.

    python benchmarks/likelihoods.py ../shared/data/pairs_stronger_preferred.parquet

The paper's setting on a small scale: a stronger model's answers, the file's chosen ones, are preferred to
answers that the trained model itself gives. So the embedded model first answers the prompts whose chosen
answer is short, then is trained on these pairs once for each objective (`recipes/cpu.yaml`). Writes one
picture each (`docs/likelihoods-apo-zero.svg`, …), made of the run's metrics.jsonl, and prints where the
held-out likelihoods ended. Within half an hour on two cores, ten minutes of it for the answers unless
`--own` keeps them; the curves are in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clair_apo.llm.local import LocalModel, LocalReply, LocalRequest
from clair_apo.train.metrics import read_metrics
from clair_apo.train.page import write_likelihood_svg

ROOT = Path(__file__).resolve().parent.parent
OBJECTIVES = ("apo-zero", "apo-down", "dpo")
# Tokens, each with the chat template around it: what is longer costs too much here.
LONGEST_CHOSEN, LONGEST_PROMPT, LONGEST_OWN = 250, 230, 260
ROWS_AT_ONCE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, help="a pair table; its prompts and chosen answers are used")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "likelihoods")
    parser.add_argument("--own", type=Path, help="file that keeps the pairs, or has them from a run before")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=5e-6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = args.own or folder / "own.parquet"
        if not own.exists():
            pq.write_table(pa.Table.from_pylist(own_answers(args.pairs)), own)
        command("split", str(own), "--test", "0.25", "--seed", "0", "--output-dir", str(folder))
        train, test = (folder / f"{own.stem}.{part}.parquet" for part in ("train", "test"))
        for objective in OBJECTIVES:
            out = folder / objective
            command(
                *("train", "--config", str(ROOT / "recipes" / "cpu.yaml")),
                *("--pairs", str(train), "--eval-pairs", str(test), "--output-dir", str(out)),
                *("--objective", objective, "--max-length", "400"),
                *("--num-train-epochs", str(args.epochs), "--learning-rate", str(args.rate)),
                *("--eval-steps", "3"),
            )
            picture = args.output.with_name(f"{args.output.name}-{objective}.svg")
            print(drawn(out, picture), flush=True)


def own_answers(pairs: Path) -> list[dict[str, str]]:
    """Pairs of the file's chosen answers with the embedded model's own, where both are short and end."""
    model = LocalModel("smollm2")
    rows = []
    for row in pq.read_table(pairs, columns=["prompt", "chosen"]).to_pylist():
        prompt, chosen = text(row["prompt"]), text(row["chosen"])
        asked, answered = ([{"role": "user", "content": said}] for said in (prompt, chosen))
        if model.count_tokens(asked) <= LONGEST_PROMPT and model.count_tokens(answered) <= LONGEST_CHOSEN:
            rows.append({"prompt": prompt, "chosen": chosen, "asked": asked})
    found = []
    for first in range(0, len(rows), ROWS_AT_ONCE):
        print(f"{first} of {len(rows)} prompts answered", file=sys.stderr, flush=True)
        some = rows[first : first + ROWS_AT_ONCE]
        replies = model.generate(
            [LocalRequest(row["asked"], LONGEST_OWN, 0.7, 0.95, first + i) for i, row in enumerate(some)]
        )
        for row, reply in zip(some, replies, strict=True):
            if isinstance(reply, LocalReply) and reply.finish_reason == "stop" and reply.text.strip():
                found.append({"prompt": row["prompt"], "chosen": row["chosen"], "rejected": reply.text})
    return found


def text(value: Any) -> str:
    """Of a message or of a conversation with one."""
    if isinstance(value, str):
        return value
    (message,) = value
    return str(message["content"])


def drawn(run: Path, picture: Path) -> str:
    """Draws a finished run, and says where its held-out likelihoods ended."""
    metrics = read_metrics(run / "metrics.jsonl")
    facts = json.loads((run / "train.json").read_text("utf-8"))
    write_likelihood_svg(picture, metrics, facts)
    last = [record for record in metrics if "eval_loss" in record][-1]
    chosen, rejected = (last[f"eval_logps/{side}_relative"] for side in ("chosen", "rejected"))
    return (
        f"{facts['objective']}: {facts['pairs_used']} pairs, {facts['steps']} steps; held out, nats "
        f"an answer against the reference: chosen {chosen:+.2f}, rejected {rejected:+.2f}"
    )


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "clair_apo.cli", *words], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
