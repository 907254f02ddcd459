"""Pairs in pandas: score them, keep those whose sides differ little, and look at what changed.

    python examples/pandas_pairs.py [PAIRS.parquet]

The file's columns `rejected` and `chosen` hold text, or messages as `clair-apo build-pairs` writes them.
"""

import sys

import pandas as pd
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

pairs = pd.read_parquet(sys.argv[1]) if len(sys.argv) > 1 else pd.DataFrame(SAMPLE, index=[10, 20, 30])
for side in ("rejected", "chosen"):
    if not isinstance(pairs[side].iloc[0], str):
        pairs[side] = pairs[side].str[-1].str["content"]

# Rows are paired by their place, so the result takes over the index. Arrow's types keep whole numbers
# whole where a row has none.
scores = pa.table(text.score(pairs["rejected"], pairs["chosen"])).to_pandas(types_mapper=pd.ArrowDtype)
scored = pairs[["rejected", "chosen"]].join(scores.set_index(pairs.index))
near = scored[(scored["word_edit_ratio"] <= 0.5) & ~scored["identical"]].sort_values("levenshtein")
print(f"{len(near)} of {len(scored)} pairs change at most half of their words")
print(near[["levenshtein", "word_edits", "jaccard"]].head().round(3).to_string())

for a, b in near[["rejected", "chosen"]].head(1).itertuples(index=False):
    for edit in text.diff(a, b):
        if edit.op != "equal":
            old, new = a[edit.a_start : edit.a_end], b[edit.b_start : edit.b_end]
            print(f"{edit.op:8}{one_line(old)!r} -> {one_line(new)!r}")
