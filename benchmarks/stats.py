"""Pairs a second of `clair-apo stats` and its peak memory, beside rapidfuzz and regex in a loop.

    python benchmarks/stats.py PAIRS.parquet --pairs 100000

The file's pairs are repeated to the number wanted. The peer works out the same distances and word
sets one pair at a time and keeps no distributions, on a part of the pairs. Needs the `dev` extra.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import regex
from rapidfuzz.distance import Levenshtein

from clair_apo.report import stats
from clair_apo.shapes import read_pairs

PEER_PAIRS = 2000
WORD = regex.compile(r"\w+|[^\w\s]")


def repeated(source: Path, target: Path, pairs: int) -> None:
    """Writes `pairs` pairs to `target`, those of `source` again and again, as plain text."""
    batches = list(read_pairs(source))
    once = pa.table(
        {
            name: pa.chunked_array([getattr(b, name).cast(pa.large_string()) for b in batches])
            for name in ("chosen", "rejected")
        }
    )
    # Without dictionaries, which would hold each repeated text but once.
    with pq.ParquetWriter(target, once.schema, use_dictionary=False) as writer:
        for start in range(0, pairs, len(once)):
            writer.write_table(once.slice(0, pairs - start))


def peer(path: Path) -> float:
    """Pairs a second of the loop."""
    pairs = [
        (rejected, chosen)
        for batch in islice(read_pairs(path), 1 + PEER_PAIRS // 100)
        for rejected, chosen in zip(batch.rejected.to_pylist(), batch.chosen.to_pylist(), strict=True)
    ][:PEER_PAIRS]
    start = time.perf_counter()
    for rejected, chosen in pairs:
        a, b = WORD.findall(rejected), WORD.findall(chosen)
        words, others = set(a), set(b)
        _ = len(words & others) / max(1, len(words | others))
        Levenshtein.distance(rejected, chosen)
        Levenshtein.distance(a, b)
    return len(pairs) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        repeated(args.file, path, args.pairs)
        start = time.perf_counter()
        (found,) = stats(path)["files"]
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rate = peer(path)
    versions = ", ".join(f"{n} {version(n)}" for n in ("clair-apo", "pyarrow", "rapidfuzz", "regex"))
    print(f"{platform.machine()}, {os.cpu_count()} cores; {versions}")
    print(
        f"mean characters: {found['rejected_chars']['mean']:.0f} rejected, "
        f"{found['chosen_chars']['mean']:.0f} chosen"
    )
    print(f"clair-apo stats: {found['pairs'] / seconds:,.0f} pairs/s, peak {peak:.0f} MiB")
    print(f"rapidfuzz, regex: {rate:,.0f} pairs/s")


if __name__ == "__main__":
    main()
