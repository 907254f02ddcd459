"""Pairs in Hugging Face datasets: score them in a batched `map`, filter by the scores, look at a change.

    python examples/datasets_pairs.py [PAIRS.parquet]

The file's columns `rejected` and `chosen` hold text, or messages as `clair-apo build-pairs` writes them.
"""

import sys

import pyarrow as pa
from datasets import Dataset, disable_progress_bars

import clair_apo.text as text
from clair_apo.terminal import one_line

SAMPLE = {
    "rejected": ["The capital of Australia is Sydney.", "I do not know.", "2 + 2 is 5, of course."],
    "chosen": [
        "The capital of Australia is Canberra.",
        "It is the speed of light.",
        "2 + 2 is 4, of course.",
    ],
}


def score(batch: pa.Table) -> pa.Table:
    scores = pa.table(text.score(batch["rejected"], batch["chosen"]))
    return pa.table([*batch.columns, *scores.columns], [*batch.column_names, *scores.column_names])


disable_progress_bars()
pairs = Dataset.from_parquet(sys.argv[1]) if len(sys.argv) > 1 else Dataset.from_dict(SAMPLE)
pairs = pairs.select_columns(["rejected", "chosen"])
if isinstance(pairs[0]["rejected"], list):
    pairs = pairs.map(lambda row: {side: row[side][-1]["content"] for side in ("rejected", "chosen")})

# With the format "arrow" a batch goes to the core and back without becoming Python objects.
scored = pairs.with_format("arrow").map(score, batched=True).with_format(None)
near = scored.filter(lambda row: row["identical"] is False and row["word_edit_ratio"] <= 0.5).sort(
    "levenshtein"
)
print(f"{len(near)} of {len(scored)} pairs change at most half of their words")
for row in near.select(range(min(5, len(near)))):
    print(row["levenshtein"], row["word_edits"], round(row["jaccard"], 3))

for row in near.select(range(min(1, len(near)))):
    a, b = row["rejected"], row["chosen"]
    for edit in text.diff(a, b):
        if edit.op != "equal":
            old, new = a[edit.a_start : edit.a_end], b[edit.b_start : edit.b_end]
            print(f"{edit.op:8}{one_line(old)!r} -> {one_line(new)!r}")
