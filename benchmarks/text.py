"""Measures of text pairs beside rapidfuzz, on one core: pairs per second of CPU time, best of a few.

    python benchmarks/text.py --data ../shared/data

The data are the pairs of `pairs_revision.parquet` and `pairs_stronger_preferred.parquet`.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # read when the first column is measured

import pyarrow as pa
import pyarrow.parquet as pq
import regex
from rapidfuzz.distance import Levenshtein

import clair_apo.text as text

# The same words for these texts, except that runs of Chinese, Thai and the like are not taken apart.
WORDS = regex.compile(r"\w+|[^\w\s]")


def read(folder: Path) -> tuple[list[str], list[str]]:
    sides: tuple[list[str], list[str]] = ([], [])
    for name in ("pairs_revision", "pairs_stronger_preferred"):
        table = pq.read_table(folder / f"{name}.parquet", columns=["rejected", "chosen"])
        for side, column in zip(sides, table.columns, strict=True):
            side += [v if isinstance(v, str) else v[-1]["content"] for v in column.to_pylist()]
    return sides


def pairs_per_second(pairs: int, work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return pairs / min(times)


def every_score(a: str, b: str) -> tuple[object, ...]:
    """What `score` measures, out of regex, sets and rapidfuzz."""
    x, y = WORDS.findall(a), WORDS.findall(b)
    in_a, in_b = set(x), set(y)
    edits = Levenshtein.editops(x, y)
    return (
        len(in_a & in_b) / len(in_a | in_b) if in_a or in_b else 1.0,
        Levenshtein.distance(a, b),
        len(edits),
        [edit.src_pos for edit in edits],
        a == b,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--repeat", type=int, default=5, help="copies of the pairs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="best of this many (%(default)s)")
    args = parser.parse_args()

    a, b = (side * args.repeat for side in read(args.data))
    pairs = list(zip(a, b, strict=True))
    left, right = pa.array(a, pa.large_string()), pa.array(b, pa.large_string())
    rows: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        (
            "Levenshtein, characters",
            lambda: text.levenshtein(left, right),
            lambda: [Levenshtein.distance(x, y) for x, y in pairs],
        ),
        (
            "Levenshtein, words from text",
            lambda: text.levenshtein(left, right, unit="word"),
            lambda: [Levenshtein.distance(WORDS.findall(x), WORDS.findall(y)) for x, y in pairs],
        ),
        (
            "word script from text",
            lambda: [text.diff(x, y) for x, y in pairs],
            lambda: [Levenshtein.opcodes(WORDS.findall(x), WORDS.findall(y)) for x, y in pairs],
        ),
        (
            "Jaccard from text",
            lambda: text.jaccard(left, right),
            lambda: [len({*WORDS.findall(x)} & {*WORDS.findall(y)}) for x, y in pairs],
        ),
        (
            "all scores from text",
            lambda: text.score(left, right),
            lambda: [every_score(x, y) for x, y in pairs],
        ),
    ]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, ", end="")
    print(f"clair-apo {version('clair-apo')}, rapidfuzz {version('rapidfuzz')}")
    length = sum(map(len, a + b)) / len(a + b)
    print(f"{len(a)} pairs, {length:.0f} characters a text; pairs/s of CPU time, one thread\n")
    print(f"{'':32}{'clair-apo':>12}{'rapidfuzz':>12}{'ratio':>8}")
    for name, ours, theirs in rows:
        fast = pairs_per_second(len(a), ours, args.rounds)
        slow = pairs_per_second(len(a), theirs, args.rounds)
        print(f"{name:32}{fast:12,.0f}{slow:12,.0f}{fast / slow:8.2f}")


if __name__ == "__main__":
    main()
