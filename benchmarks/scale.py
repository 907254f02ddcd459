"""Time and peak memory of a command as the number of pairs grows; of `stats` beside the best Python stack.

    python benchmarks/scale.py PAIRS.parquet… --sizes 10000,100000,1000000
    python benchmarks/scale.py PAIRS.parquet… --sizes 100000 --row-groups 4000,20000,200000,0
    python benchmarks/scale.py PAIRS.parquet… --sizes 100000 --kinds parquet,jsonl \\
        --commands stats,filter,dedup,decontaminate,convert,split

A file of each size is made of the real pairs given: about 2 KB a text, each copy with words of its own (a
word becomes another of the same length, the same in all texts of a row), so that nothing is stored twice.
A row-group size of 0 is one row group. Every run is a process of its own; memory is its peak resident set
beyond that of a process that has imported the package. A command writes a file of the kind that it reads;
`decontaminate` looks for the real prompts. The peer works out the same distances and word sets as `stats`
with rapidfuzz and regex over batches of pyarrow, in as many processes as there are cores, on a part of the
last file, and keeps no distributions. Needs the `dev` extra, and Linux for the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import regex
from rapidfuzz.distance import Levenshtein

PEER_PAIRS = 3000
COPIED = 0.4  # of the words another one takes the place, anew in each copy
WORD = regex.compile(r"\w+|[^\w\s]")

COLUMNS = ("prompt", "chosen", "rejected")
# What each command is run with; OUT is the file to write, BENCHMARK the real prompts.
COMMANDS = {
    "stats": [],
    "filter": ["--where", "levenshtein > 100", "--output", "OUT"],
    "dedup": ["--output", "OUT"],
    "decontaminate": ["--against", "BENCHMARK", "--output", "OUT"],
    "convert": ["--to", "trl", "--output", "OUT"],
    "split": ["--output-dir", "FOLDER"],
}
KINDS = ("parquet", "jsonl")

HIGHEST = "print(next(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')))"


def copies(sources: list[Path], pairs: int) -> Iterator[pa.Table]:
    """Tables of `prompt`, `chosen` and `rejected`, `pairs` rows in all, no two texts alike."""
    tables = [pq.read_table(path, columns=list(COLUMNS)) for path in sources]
    split = [
        [re.findall(r"\w+|\W+", text) for text in row.values()]
        for table in tables
        for row in table.to_pylist()
    ]
    by_length: dict[int, list[str]] = {}
    for word in sorted({w for row in split for text in row for w in text if w.isalpha()}):
        by_length.setdefault(len(word), []).append(word)
    for copy, start in enumerate(range(0, pairs, len(split))):
        rng = random.Random(copy)
        other = {w: rng.choice(ws) for ws in by_length.values() for w in ws if rng.random() < COPIED}
        rows = [
            ["".join([other.get(w, w) for w in text]) for text in row] for row in split[: pairs - start]
        ]
        yield pa.table(dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)))


def write(sources: list[Path], pairs: int, group: int, target: Path) -> None:
    """The file as Parquet, and the same rows as JSON Lines beside it."""
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    group = group or pairs
    lines = target.with_suffix(".jsonl")
    with pq.ParquetWriter(target, schema, compression="zstd") as writer, lines.open("w") as text:
        pending: list[pa.Table] = []
        for table in copies(sources, pairs):
            text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
            pending.append(table)
            if sum(map(len, pending)) >= group:
                writer.write_table(pa.concat_tables(pending), row_group_size=group)
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending), row_group_size=group)


def measured(code: str) -> tuple[float, float, list[str]]:
    """Seconds and MiB that a process takes for `code`, and the lines it prints."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{HIGHEST}"], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.perf_counter() - start
    lines = done.stdout.splitlines()
    return seconds, int(lines[-1]) / 1024, lines[:-1]


def run(name: str, path: Path, base: float) -> tuple[float, float, int]:
    """Seconds, MiB beyond `base`, and rows of one run of the command `name`."""
    folder = path.parent / "out"
    folder.mkdir(exist_ok=True)
    places = {
        "OUT": str(folder / path.name),
        "FOLDER": str(folder),
        "BENCHMARK": str(path.parent / "benchmark.jsonl"),
    }
    flags = [places.get(flag, flag) for flag in COMMANDS[name]]
    command = [name, "--json", "--quiet", str(path), *flags]
    seconds, peak, lines = measured(f"from clair_apo.cli import main\nassert main({command!r}) == 0")
    told = json.loads(lines[0])
    return seconds, peak - base, told["files"][0]["pairs"] if name == "stats" else told["rows_in"]


def peer(path: Path, part: int, parts: int, pairs: int) -> float:
    """Seconds for about `pairs` pairs of every `parts`-th batch."""
    file = pq.ParquetFile(path)
    batches = islice(file.iter_batches(256, columns=["rejected", "chosen"]), part, None, parts)
    done, start = 0, time.perf_counter()
    while done < pairs and (batch := next(batches, None)) is not None:
        done += batch.num_rows
        for rejected, chosen in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            a, b = WORD.findall(rejected), WORD.findall(chosen)
            words, others = set(a), set(b)
            _ = len(words & others) / max(1, len(words | others))
            Levenshtein.distance(rejected, chosen)
            Levenshtein.distance(a, b)
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "files", type=Path, nargs="+", help="real pairs: columns chosen and rejected of text"
    )
    parser.add_argument("--sizes", default="10000,100000", help="numbers of pairs, with commas")
    parser.add_argument("--row-groups", default="20000", help="rows of a row group, with commas; 0 is all")
    parser.add_argument("--commands", default="stats", help=f"with commas, of {', '.join(COMMANDS)}")
    parser.add_argument("--kinds", default="parquet", help=f"with commas, of {', '.join(KINDS)}")
    args = parser.parse_args()
    sizes, groups = ([int(n) for n in text.split(",")] for text in (args.sizes, args.row_groups))
    commands, kinds = args.commands.split(","), args.kinds.split(",")
    for asked, known in ((commands, COMMANDS), (kinds, KINDS)):
        if unknown := [name for name in asked if name not in known]:
            parser.error(f"{', '.join(unknown)}: known are {', '.join(known)}")
    cores = len(os.sched_getaffinity(0))
    names = ("clair-apo", "pyarrow", "rapidfuzz", "regex")
    print(f"{platform.machine()}, {cores} cores; {', '.join(f'{n} {version(n)}' for n in names)}")
    _, base, _ = measured("import clair_apo")
    print(f"a process that has imported the package: {base:.0f} MiB")
    print(
        f"{'command':>13} {'pairs':>10} {'row group':>10} {'file':>9} {'of':>7} {'seconds':>8} "
        f"{'pairs/s':>9} {'peak beyond it':>15}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        prompts = [
            row for source in args.files for row in pq.read_table(source, columns=["prompt"]).to_pylist()
        ]
        benchmark = "".join(json.dumps(row) + "\n" for row in prompts)
        (Path(folder) / "benchmark.jsonl").write_text(benchmark)
        for size, group in product(sizes, groups):
            write(args.files, size, group, path)
            for kind, name in product(kinds, commands):
                file = path.with_suffix(f".{kind}")
                seconds, peak, pairs = run(name, file, base)
                assert pairs == size
                print(
                    f"{name:>13} {size:>10,} {group or size:>10,} {file.stat().st_size >> 20:>5} MiB "
                    f"{kind:>7} {seconds:>8.2f} {pairs / seconds:>9,.0f} {peak:>11.0f} MiB",
                    flush=True,
                )
        if "stats" not in commands:
            return
        with get_context("spawn").Pool(cores) as pool:
            rates = pool.starmap(peer, [(path, part, cores, PEER_PAIRS) for part in range(cores)])
    print(f"rapidfuzz and regex over pyarrow, {cores} processes: {sum(rates):,.0f} pairs/s")


if __name__ == "__main__":
    main()
