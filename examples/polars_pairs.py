"""Pairs in polars: score them, keep those whose sides differ little, and look at what changed.

    python examples/polars_pairs.py [PAIRS.parquet]

The file's columns `rejected` and `chosen` hold text, or messages as `clair-apo build-pairs` writes them.
"""

import sys

import polars as pl

import clair_apo.polars  # noqa: F401 - adds the namespace `clair` to expressions
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

pairs = pl.scan_parquet(sys.argv[1]) if len(sys.argv) > 1 else pl.LazyFrame(SAMPLE)
for side, dtype in pairs.select("rejected", "chosen").collect_schema().items():
    if isinstance(dtype, pl.List):
        pairs = pairs.with_columns(pl.col(side).list.last().struct.field("content").alias(side))

scored = (
    pairs.select("rejected", "chosen")
    .with_columns(pl.col("rejected").clair.score("chosen").alias("score"))
    .unnest("score")
    .collect(engine="streaming")
)
near = scored.filter((pl.col("word_edit_ratio") <= 0.5) & ~pl.col("identical")).sort("levenshtein")
print(f"{near.height} of {scored.height} pairs change at most half of their words")
print(near.select("levenshtein", "word_edits", pl.col("jaccard").round(3)).head())

for rejected, chosen in near.select("rejected", "chosen").head(1).iter_rows():
    for edit in text.diff(rejected, chosen):
        if edit.op != "equal":
            old, new = rejected[edit.a_start : edit.a_end], chosen[edit.b_start : edit.b_end]
            print(f"{edit.op:8}{one_line(old)!r} -> {one_line(new)!r}")
