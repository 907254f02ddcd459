"""Counting tokens beside the usual libraries, on one core: MB of text per second of CPU time.

    python benchmarks/bpe.py --data ../shared/data

The texts are all different strings in the Parquet and JSONL files of the folder. `MB/s` is the best of a
few passes, `cold` the first, when no piece has been counted before; the ratio is that of the best. tiktoken
reads its vocabularies from TIKTOKEN_CACHE_DIR or the network; with `--vocabularies` from the sources of the
crate bpe-openai. `--tokenizer` names files to count by, each beside the library tokenizers. quicktok,
rs_bpe and the Python package bpe-openai are measured too where they are installed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Read when the first column is counted, and by the library tokenizers.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken

import clair_apo.text as text


def read(folder: Path) -> list[str]:
    found: dict[str, None] = {}

    def walk(value: object) -> None:
        if isinstance(value, str):
            found[value] = None
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                walk(inner)

    for file in sorted(folder.glob("*.parquet")):
        walk(pq.read_table(file).to_pylist())
    for file in sorted(folder.glob("*.jsonl")):
        walk([json.loads(line) for line in file.read_text("utf-8").splitlines()])
    return list(found)


def unpack(sources: Path) -> None:
    """Fills a cache of tiktoken's from the crate's sources."""
    folder = Path(tempfile.mkdtemp())
    for name in text.ENCODINGS:
        url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
        key = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
        (folder / key).write_bytes(gzip.decompress((sources / f"{name}.tiktoken.gz").read_bytes()))
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def counted(encode: Callable[[str], list[int]], sample: str) -> int:
    return len(encode(sample))


def peers(name: str) -> dict[str, Callable[[str], int]]:
    """What else counts here, by what it is called."""
    oracle = tiktoken.get_encoding(name)
    found: dict[str, Callable[[str], int]] = {"tiktoken": partial(counted, oracle.encode_ordinary)}
    makers: dict[str, Callable[[Any], Callable[[str], int]]] = {
        "quicktok": lambda module: module.get_encoding(name).count,
        "rs_bpe": lambda module: getattr(module.openai, name)().count,
        "bpe_openai": lambda module: partial(counted, module.get_encoding(name).encode_ordinary),
    }
    for package, make in makers.items():
        try:
            found[package] = make(import_module(package))
        except ImportError:
            continue
        except Exception as error:  # a version with other names
            print(f"{package} is not measured: {error}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=5, help="best of this many (%(default)s)")
    parser.add_argument("--vocabularies", type=Path, help="the folder data of the crate bpe-openai")
    parser.add_argument("--tokenizer", type=Path, action="append", default=[], help="a tokenizer.json")
    args = parser.parse_args()
    if args.vocabularies:
        unpack(args.vocabularies)

    texts = read(args.data)
    column = pa.array(texts, pa.large_string())
    size = sum(len(t.encode()) for t in texts) / 1e6

    def row(name: str, peer: str, first: float, best: float, base: float, note: str = "") -> None:
        cold = f"{size / first:9.1f}" if first else " " * 9
        print(f"{name[-28:]:30}{peer:12}{size / best:9.1f}{cold}{base / best:8.2f}  {note}")

    def ours(name: str | Path, rounds: int) -> tuple[float, float]:
        text.count_tokens([""], name)  # the tables
        times = [seconds(lambda: text.count_tokens(column, name)) for _ in range(rounds)]
        return times[0], min(times)

    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, ", end="")
    for package in ("clair-apo", "tiktoken", "tokenizers"):
        try:
            print(f"{package} {version(package)}", end=", ")
        except PackageNotFoundError:
            continue
    print(f"one thread\n{len(texts)} texts, {size:.1f} MB\n")
    print(f"{'':30}{'':12}{'MB/s':>9}{'cold':>9}{'ratio':>8}")
    for name in text.ENCODINGS:
        first, best = ours(name, args.rounds * 4)
        counts = text.count_tokens(column, name).to_pylist()
        base = 0.0
        for peer, count in peers(name).items():
            same = [count(t) for t in texts] == counts
            theirs = min(seconds(lambda c=count: [c(t) for t in texts]) for _ in range(args.rounds))
            base = base or theirs
            row(name, peer, 0, theirs, base, "" if same else "other counts!")
        row(name, "clair-apo", first, best, base)
    for path in args.tokenizer:
        tokenizers: Any = import_module("tokenizers")
        file = path / "tokenizer.json" if path.is_dir() else path
        library = tokenizers.Tokenizer.from_file(str(file))

        def encode(library: Any = library) -> list[int]:
            return [len(e) for e in library.encode_batch_fast(texts, add_special_tokens=False)]

        first, best = ours(path, args.rounds * 4)
        same = encode() == text.count_tokens(column, path).to_pylist()
        base = min(seconds(encode) for _ in range(args.rounds))
        row(str(path), "tokenizers", 0, base, base, "" if same else "other counts!")
        row(str(path), "clair-apo", first, best, base)


if __name__ == "__main__":
    main()
