"""The text core beside its peers, on one core: rows per second of CPU time, best of a few rounds.

    python benchmarks/text.py --data ../shared/data
    python benchmarks/text.py --sections char,script --json > figures.json

Sections: char (exact character Levenshtein), script (minimal word edit scripts from text), scores (every
measure of `stats`), jaccard (of sets of words), near (near-duplicates out, from text), tokens (BPE counts).

The pairs are the real ones of `--data` and as many made ones as `--pairs` says (see `text_data.py`). Peers
are installed in an environment of their own at the first start (a minute, 0.7 GB) and measured in the same
process as we, round by round in turn; what each is given is in `text_peers.py`. Results are compared before
they are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import text_peers as peers

if TYPE_CHECKING:
    from text_data import Documents

SECTIONS = ("char", "script", "scores", "jaccard", "near", "tokens")
PACKAGES = [
    *("clair-apo", "rapidfuzz", "Levenshtein", "polars", "polars-ds", "polars-distance", "pyarrow"),
    *("rensa", "daft", "datasketch", "tiktoken", "bpe-openai", "rs_bpe", "toktok-rs"),
]
OURS = "clair-apo"


@dataclass
class Goal:
    """How many times as fast as the best of the peers whose names begin so."""

    against: str
    floor: float
    moonshot: float


@dataclass
class Figure:
    section: str
    data: str
    who: str
    rows: int
    per_second: float
    unit: str
    ratio: float | None = None  # ours over theirs
    note: str = ""


@dataclass
class Verdict:
    section: str
    data: str
    against: str
    ratio: float
    floor: float
    moonshot: float
    met: bool


def measured(works: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, float]:
    """Rows per second of CPU time of each, best of `rounds`, all in turn in every round."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, (work, _rows) in works.items():
            start = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - start)
    return {name: works[name][1] / seconds for name, seconds in best.items()}


class Benchmark:
    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.figures: list[Figure] = []
        self.verdicts: list[Verdict] = []

    def run(
        self,
        section: str,
        data: str,
        works: dict[str, tuple[Callable[[], Any], int]],
        goals: Sequence[Goal],
        *,
        unit: str = "pairs/s",
        scale: float = 1.0,
        notes: dict[str, str] | None = None,
    ) -> None:
        print(f"{section}, {data} …", file=sys.stderr, flush=True)
        rates = measured(works, self.rounds)
        for name, rate in rates.items():
            ratio = None if name == OURS else rates[OURS] / rate
            note = (notes or {}).get(name, "")
            self.figures.append(
                Figure(section, data, name, works[name][1], rate * scale, unit, ratio, note)
            )
        for goal in goals:
            against = {name: rate for name, rate in rates.items() if name.startswith(goal.against)}
            if against:
                ratio = rates[OURS] / max(against.values())
                met = ratio >= goal.floor
                self.verdicts.append(
                    Verdict(section, data, goal.against, ratio, goal.floor, goal.moonshot, met)
                )


def agreement(ours: Sequence[Any], theirs: Sequence[Any], alike: Sequence[bool] | None = None) -> str:
    """How many results are the same; `alike` leaves out the rows that are split into other words."""
    same = [x == y for x, y in zip(ours, theirs, strict=True)]
    if alike is None:
        alike = [True] * len(same)
    wrong = sum(there and not equal for there, equal in zip(alike, same, strict=True))
    others = len(alike) - sum(alike)
    where = f" ({others} pairs have other words there)" if others else ""
    return f"{wrong} results differ{where}" if wrong else f"results equal{where}"


def alike(pairs: list[tuple[str, str]]) -> list[bool]:
    """Where Python's expression for words, which knows no scripts without spaces, finds the same ones."""
    import clair_apo.text as text

    return [all(text.words(side) == peers.WORDS.findall(side) for side in pair) for pair in pairs]


def kernel() -> str:
    import clair_apo.text as text

    return text.kernel()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            peers.MISSING.setdefault(name, "not installed")
    return found


def char(bench: Benchmark, data: str, pairs: list[tuple[str, str]]) -> None:
    import clair_apo.text as text

    a, b, left, right = columns(pairs)
    floor, moonshot = {"avx512": (3, 6), "avx2": (1.5, 3)}.get(kernel().removesuffix("vbmi2"), (1, 2))
    works = {OURS: (lambda: text.levenshtein(left, right), len(pairs)), **peers.characters(a, b)}
    ours = text.levenshtein(left, right).to_pylist()
    notes = {name: agreement(ours, work()) for name, (work, _) in works.items() if name != OURS}
    bench.run("char", data, works, [Goal("rapidfuzz", floor, moonshot)], notes=notes)


def script(bench: Benchmark, data: str, pairs: list[tuple[str, str]]) -> None:
    import clair_apo.text as text

    _, _, left, right = columns(pairs)
    works = {OURS: (lambda: text.edit_scripts(left, right), len(pairs)), **peers.scripts(pairs)}
    ours = text.levenshtein(left, right, unit="word").to_pylist()
    words = alike(pairs)
    notes = {
        name: agreement(ours, [cost(x) for x in work()], words)
        for name, (work, _) in works.items()
        if name != OURS
    }
    bench.run("script", data, works, [Goal("re + rapidfuzz", 6, 12)], notes=notes)


def cost(opcodes: Any) -> int:
    return sum(max(x.src_end - x.src_start, x.dest_end - x.dest_start) for x in opcodes if x.tag != "equal")


def scores(bench: Benchmark, data: str, pairs: list[tuple[str, str]]) -> None:
    import clair_apo.text as text

    _, _, left, right = columns(pairs)
    works = {OURS: (lambda: text.score(left, right), len(pairs)), **peers.scores(pairs)}
    table = text.score(left, right)
    ours = list(
        zip(*(table[name].to_pylist() for name in ("jaccard", "levenshtein", "word_edits")), strict=True)
    )
    words = alike(pairs)
    notes = {
        name: agreement(ours, [(x[0], x[1], x[3]) for x in work()], words)
        for name, (work, _) in works.items()
        if name != OURS
    }
    bench.run("scores", data, works, [Goal("re, sets", 6, 10)], notes=notes)


def jaccard(bench: Benchmark, data: str, pairs: list[tuple[str, str]]) -> None:
    import clair_apo.text as text

    a, b, left, right = columns(pairs)
    works = {OURS: (lambda: text.jaccard(left, right), len(pairs)), **peers.jaccards(a, b)}
    ours = text.jaccard(left, right).to_pylist()
    words = alike(pairs)
    notes = {
        name: agreement(ours, work(), words)
        for name, (work, _) in works.items()
        if name != OURS and "other words" not in name
    }
    bench.run("jaccard", data, works, [Goal("polars", 3, 5), Goal("re + Python", 6, 12)], notes=notes)


def tokens(bench: Benchmark, data: str, pairs: list[tuple[str, str]]) -> None:
    import pyarrow as pa

    import clair_apo.text as text

    texts = [side for pair in pairs for side in pair]
    column = pa.array(texts, pa.large_string())
    with tempfile.TemporaryDirectory() as folder:
        if not peers.vocabularies(Path(folder)):
            print("tiktoken's vocabularies are not here: it will want to download them", file=sys.stderr)
        for encoding in text.ENCODINGS[:2]:
            counted = peers.tokens(texts, encoding)
            works = {OURS: (lambda e=encoding: text.count_tokens(column, e), len(texts)), **counted}
            ours = text.count_tokens(column, encoding).to_pylist()
            notes = {name: agreement(ours, work()) for name, (work, _) in counted.items()}
            megabytes = sum(len(t.encode()) for t in texts) / len(texts) / 1e6
            bench.run(
                "tokens",
                f"{data}, {encoding}",
                works,
                [Goal("tiktoken", 2.4, 8)],
                unit="MB/s",
                scale=megabytes,
                notes=notes,
            )


def near(bench: Benchmark, found: Documents) -> None:
    """Near-duplicates out of documents; what each finds is judged by exact Jaccard. Ours begins with a
    column in memory, as theirs do; the command, which reads and writes files too, has a row of its own."""
    import pyarrow as pa

    import clair_apo.text as text

    column = pa.array(found.texts, pa.large_string())

    def in_memory() -> list[int]:
        gone = text.near_duplicates(column, threshold=peers.THRESHOLD)
        rows: list[int] = gone["row"].to_pylist()
        return rows

    with tempfile.TemporaryDirectory() as folder:
        command = Dedup(found.texts, Path(folder))
        works: dict[str, tuple[Callable[[], Any], int]] = {}
        notes = {}
        count = len(found.texts)
        candidates = {
            OURS: (in_memory, count, True),
            "clair-apo dedup, file to file": (command.run, count, True),
            **peers.near_duplicates(found.texts),
        }
        for name, (work, rows, leaves) in candidates.items():
            works[name] = (work, rows)
            gone = work()
            if leaves is not None:
                recall, precision = found.first(rows).judge(gone, leaves=leaves)
                notes[name] = f"recall {recall:.4f}, precision {precision:.4f}"
        goals = [
            Goal("rensa,", 8, 12),
            Goal("rensa at spaces", 8, 12),
            Goal("Daft", 2, 3),
            Goal("datasketch", 60, 90),
        ]
        bench.run("near", "documents", works, goals, unit="texts/s", notes=notes)


class Dedup:
    """`clair-apo dedup` from file to file, which reads and writes besides what the peers do."""

    def __init__(self, texts: list[str], folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.file, self.gone = folder / "pairs.parquet", folder / "gone.parquet"
        same = pa.array(["-"] * len(texts))
        pq.write_table(pa.table({"prompt": same, "chosen": texts, "rejected": same}), self.file)
        self.arguments = ["dedup", str(self.file), "--output", str(folder / "kept.parquet"), "--quiet"]
        self.arguments += ["--on", "chosen", "--threshold", str(peers.THRESHOLD), "--keep", "first"]
        self.arguments += ["--clusters", str(self.gone)]

    def run(self) -> list[int]:
        """The rows that went."""
        import pyarrow.parquet as pq

        from clair_apo.cli import main

        with contextlib.redirect_stdout(io.StringIO()):
            status = main(self.arguments)
        if status:
            raise SystemExit(f"clair-apo dedup ended with {status}")
        rows: list[int] = pq.read_table(self.gone, columns=["row"])["row"].to_pylist()
        return rows


def columns(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str], Any, Any]:
    import pyarrow as pa

    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    return a, b, pa.array(a, pa.large_string()), pa.array(b, pa.large_string())


def lines(bench: Benchmark) -> Iterator[str]:
    yield f"{'work':9}{'data':27}{'':37}{'per second':>14}{'ours':>9}"
    before = None
    for figure in bench.figures:
        if (figure.section, figure.data) != before:
            yield ""
        before = (figure.section, figure.data)
        rate = f"{figure.per_second:,.1f}" if figure.per_second < 100 else f"{figure.per_second:,.0f}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
        line = f"{figure.section:9}{figure.data:27}{figure.who:37}{rate:>7} {figure.unit}{ratio:>9}"
        yield f"{line}  {figure.note}".rstrip()
    yield ""
    yield "| work | data | against | ratio per core | floor | moonshot |"
    yield "|---|---|---|---|---|---|"
    for v in bench.verdicts:
        word = "met" if v.met else "**missed**"
        yield (
            f"| {v.section} | {v.data} | {v.against} | {v.ratio:.1f}x | {v.floor:g}x {word} "
            f"| {v.moonshot:g}x{' met' if v.ratio >= v.moonshot else ''} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of %(default)s")
    parser.add_argument("--pairs", type=int, default=2000, help="made pairs (%(default)s; 0: none)")
    parser.add_argument("--documents", type=int, default=10_000, help="for `near` (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="best of this many (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is made (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document in place of the tables")
    args = parser.parse_args()
    wanted = args.sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"unknown sections {', '.join(sorted(unknown))}: known are {', '.join(SECTIONS)}")
    peers.enter(Path(__file__).resolve().parent / ".envs" / "text")

    from text_data import documents, made_pairs, real_pairs

    real = real_pairs(args.data)
    sets = {"real pairs": real}
    if args.pairs:
        sets["made pairs"] = made_pairs(real, args.pairs, args.seed)
    bench = Benchmark(args.rounds)
    by_pairs = {"char": char, "script": script, "scores": scores, "jaccard": jaccard, "tokens": tokens}
    for section in SECTIONS:
        if section not in wanted:
            continue
        if section == "near":
            near(bench, documents(real, args.documents, args.seed))
            continue
        for data, pairs in sets.items():
            by_pairs[section](bench, data, pairs)

    about = {
        "machine": processor(),
        "kernel": kernel(),
        "versions": versions(),
        "pairs": {name: len(pairs) for name, pairs in sets.items()},
        "characters a text": {
            name: round(sum(len(a) + len(b) for a, b in pairs) / (2 * len(pairs)))
            for name, pairs in sets.items()
        },
        "missing": peers.MISSING,
    }
    if args.json:
        rows = [asdict(figure) for figure in bench.figures]
        print(json.dumps({**about, "figures": rows, "goals": [asdict(v) for v in bench.verdicts]}))
        return
    print(f"{about['machine']}, one thread, kernel {about['kernel']}")
    print(", ".join(f"{name} {number}" for name, number in versions().items()))
    print(
        "; ".join(
            f"{len(pairs)} {name}, {about['characters a text'][name]} characters a text"
            for name, pairs in sets.items()
        )
    )
    for name, why in peers.MISSING.items():
        print(f"not measured: {name} ({why})")
    print()
    print("\n".join(lines(bench)))


if __name__ == "__main__":
    main()
