"""Pairs in DuckDB: score what a query gives, and query the scores beside the pairs.

    python examples/duckdb_pairs.py [PAIRS.parquet]

The file's columns `rejected` and `chosen` hold text, or messages as `clair-apo build-pairs` writes them.
"""

import sys

import duckdb
import pyarrow as pa

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

db = duckdb.connect()
source = db.read_parquet(sys.argv[1]) if len(sys.argv) > 1 else db.from_arrow(pa.table(SAMPLE))
for side in ("rejected", "chosen"):
    if source.project(side).types[0].id == "list":
        source = source.project(f"* replace ({side}[-1].content as {side})")

# A relation runs its query each time that it is read: taken once, both sides are of the same rows.
pairs = source.project("rejected, chosen").to_arrow_table()
scores = pa.table(text.score(pairs["rejected"], pairs["chosen"]))
db.register(
    "scored", pa.table([*pairs.columns, *scores.columns], [*pairs.column_names, *scores.column_names])
)

near = db.sql("from scored where word_edit_ratio <= 0.5 and not identical order by levenshtein")
print(f"{len(near)} of {len(pairs)} pairs change at most half of their words")
print(near.project("levenshtein, word_edits, round(jaccard, 3) as jaccard").limit(5))

for a, b in near.project("rejected, chosen").limit(1).fetchall():
    for edit in text.diff(a, b):
        if edit.op != "equal":
            old, new = a[edit.a_start : edit.a_end], b[edit.b_start : edit.b_end]
            print(f"{edit.op:8}{one_line(old)!r} -> {one_line(new)!r}")
