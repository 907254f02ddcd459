"""Tokens, cost and contrast of revisions as whole answers and as edits, on real revisions.

    python benchmarks/reply_formats.py ../shared/data/pairs_revision.parquet [--model gpt-4o]

Both formats carry the same revision of the same answer, so its contrast is the same and only the reply
differs; what a reviser would write if it were asked for edits is not measured here. Edits are of lines, and
hold as many lines around them as make them unique (`tests/players.py`). The rows are also shown by how much
a revision changes (character distance over the longer length), since that is what decides.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import clair_apo.text as text
from clair_apo.build import templates
from clair_apo.build.edits import parse_edits
from clair_apo.build.parser import Unparsable
from clair_apo.llm.endpoint import DEFAULT_URL
from clair_apo.llm.prices import list_price
from clair_apo.llm.tokens import count_requests, count_texts
from players import as_edits

BANDS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 0.9), (0.9, 1.01), (0.0, 1.01))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument(
        "--model", default="gpt-4o", help="whose tokens and list price (default: %(default)s)"
    )
    args = parser.parse_args()
    price = list_price(args.model, DEFAULT_URL)
    pairs = [row for row in pq.read_table(args.pairs).to_pylist() if row["chosen"] != row["rejected"]]
    original, revision = ([row[side] for row in pairs] for side in ("rejected", "chosen"))
    replies = [as_edits(a, b) for a, b in zip(original, revision, strict=True)]
    ratios = text.levenshtein_ratio(original, revision).to_pylist()
    jaccards = text.jaccard(original, revision).to_pylist()
    applies = [_applies(*row) for row in zip(replies, original, revision, strict=True)]

    def requests(name: str) -> list[int]:
        template = templates.load(name)
        asked = [
            template.ask([{"role": "user", "content": row["prompt"]}], row["rejected"]) for row in pairs
        ]
        return count_requests(asked, args.model)

    tokens_in = {"full": requests("paper"), "edits": requests("edits")}
    tokens_out = {"full": count_texts(revision, args.model), "edits": count_texts(replies, args.model)}
    print(f"{len(pairs)} revisions of {args.pairs.name}, tokens of {args.model}, reasons left out")
    print("edit ratio   pairs  jaccard  apply   out: full  edits  ratio  fewer in   USD/1,000: full  edits")
    for low, high in BANDS:
        rows = [n for n, ratio in enumerate(ratios) if low <= ratio < high]
        if not rows:
            continue
        out = {name: mean(counts[n] for n in rows) for name, counts in tokens_out.items()}
        usd = {
            name: sum(price.cost(tokens_in[name][n], tokens_out[name][n]) for n in rows) / len(rows) * 1000
            if price
            else float("nan")
            for name in out
        }
        fewer = mean(tokens_out["edits"][n] < tokens_out["full"][n] for n in rows)
        print(
            f"{low:.1f} to {min(high, 1):.1f}  {len(rows):>6}  {mean(jaccards[n] for n in rows):>7.3f}"
            f"  {mean(applies[n] for n in rows):>5.0%}  {out['full']:>10.0f}  {out['edits']:>5.0f}"
            f"  {out['edits'] / out['full']:>5.2f}  {fewer:>8.0%}"
            f"   {usd['full']:>15.2f}  {usd['edits']:>5.2f}"
        )


def _applies(reply: str, original: str, revision: str) -> bool:
    """Whether the edits give back the revision (but for white space around it); the others would be
    asked for in full."""
    try:
        return parse_edits(reply, original).revision.strip() == revision.strip()
    except Unparsable:
        return False


if __name__ == "__main__":
    main()
