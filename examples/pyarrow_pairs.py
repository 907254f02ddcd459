"""Pairs in pyarrow, batch by batch: score them, keep those whose sides differ little, look at a change.

    python examples/pyarrow_pairs.py [PAIRS.parquet]

The file's columns `rejected` and `chosen` hold text, or messages as `clair-apo build-pairs` writes them.
"""

import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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


def side(column: pa.Array) -> pa.Array:
    """The text of a side; a message list of this project holds one message."""
    return (
        pc.struct_field(pc.list_element(column, 0), "content") if pa.types.is_list(column.type) else column
    )


def near(batch: pa.RecordBatch) -> pa.Table:
    """The pairs of a batch that change at most half of their words, with their scores."""
    pairs = {"rejected": side(batch["rejected"]), "chosen": side(batch["chosen"])}
    scores = pa.table(text.score(pairs["rejected"], pairs["chosen"]))
    table = pa.table({**pairs, **{name: scores[name] for name in scores.column_names}})
    return table.filter((pc.field("word_edit_ratio") <= 0.5) & ~pc.field("identical"))


file = pq.ParquetFile(sys.argv[1]) if len(sys.argv) > 1 else None
batches = (
    file.iter_batches(1024, columns=["rejected", "chosen"]) if file else pa.table(SAMPLE).to_batches(2)
)
rows = file.metadata.num_rows if file else len(SAMPLE["chosen"])
kept = pa.concat_tables(near(batch) for batch in batches).sort_by("levenshtein")
print(f"{len(kept)} of {rows} pairs change at most half of their words")
print(kept.select(["levenshtein", "word_edits", "jaccard"]).slice(0, 5).to_pydict())

for pair in kept.slice(0, 1).to_pylist():
    a, b = pair["rejected"], pair["chosen"]
    for edit in text.diff(a, b):
        if edit.op != "equal":
            old, new = a[edit.a_start : edit.a_end], b[edit.b_start : edit.b_end]
            print(f"{edit.op:8}{one_line(old)!r} -> {one_line(new)!r}")
