"""`clair-apo stats` and `clair-apo diff`: flags, and what runs behind them.

Importing this is cheap, for `clair-apo --help`: what is heavy comes in when a command runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

SELECTIONS = ("row", "id", "sample", "largest", "smallest")


def stats_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `stats`."""
    parser.description = (
        "How contrastive preference pairs are, how long, where they differ, and what is\n"
        "wrong with them; several files stand beside each other."
    )
    parser.epilog = "example:\n  clair-apo stats pairs.clair.parquet pairs.on-policy-judge.parquet"
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="preference pairs: .parquet, .jsonl (also .gz, .zst), .csv, a folder or a quoted glob",
    )


def run_stats(args: argparse.Namespace) -> int:
    """Prints the numbers of `args.files`; returns the exit status."""
    from clair_apo.report.summary import stats

    with _Bar(quiet=args.quiet) as bar:
        report = stats(args.files, bar.update)
    if args.json:
        _print_json(report)
    else:
        from clair_apo.report.view import show
        from clair_apo.terminal import console

        show(report, console())
    return 0


def diff_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `diff`."""
    parser.description = (
        "What changed from the rejected to the chosen answer, word by word. Without a\n"
        "selection: a sample of three pairs. The edit ratio is levenshtein_ratio."
    )
    parser.epilog = "example:\n  clair-apo diff pairs.parquet --largest 5"
    parser.add_argument("file", metavar="FILE", help="preference pairs, as for stats")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--row", type=int, metavar="N", help="the pair in row N, counted from 0")
    which.add_argument("--id", metavar="ID", help="the pair with this id")
    which.add_argument("--sample", type=int, metavar="N", help="N pairs by chance, in file order")
    which.add_argument("--largest", type=int, metavar="N", help="the N pairs of the highest edit ratio")
    which.add_argument("--smallest", type=int, metavar="N", help="the N pairs of the lowest edit ratio")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="makes --sample repeatable (0)")


def run_diff(args: argparse.Namespace) -> int:
    """Prints the pairs that the flags select; returns the exit status."""
    from clair_apo.errors import UsageError
    from clair_apo.report import diff

    chosen = {name: value for name in SELECTIONS if (value := getattr(args, name)) is not None}
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)} exclude each other; choose one")
    name, value = next(iter(chosen.items()), ("sample", 3))
    if name != "id" and value < (0 if name == "row" else 1):
        least = "rows are counted from 0" if name == "row" else "at least one pair"
        raise UsageError(f"--{name} {value}: {least}")
    with _Bar(quiet=args.quiet) as bar:
        pairs = diff.select(args.file, name, value, args.seed, bar.update)
    if args.json:
        _print_json(diff.document(args.file, pairs))
    else:
        from clair_apo.terminal import console

        diff.show(args.file, pairs, console())
    return 0


def _print_json(document: dict[str, Any]) -> None:
    # ASCII only: no text of a model reaches a terminal as it is.
    print(json.dumps(document, allow_nan=False))


class _Bar:
    """A bar on stderr for runs that take longer than a moment; none where stderr is no terminal."""

    PATIENCE = 0.7

    def __init__(self, quiet: bool) -> None:
        from clair_apo.terminal import colour_allowed

        self._wanted = not quiet and colour_allowed(sys.stderr)
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bar:
        import time

        self._clock = time.monotonic
        self._start = self._clock()
        return self

    def update(self, file: str, rows: int, total: int | None) -> None:
        """Shows that `rows` of `total` rows of `file` are done."""
        if not self._wanted or self._clock() - self._start < self.PATIENCE:
            return
        if self._progress is None:
            self._open()
        if file not in self._tasks:
            from clair_apo.terminal import one_line

            self._tasks[file] = self._progress.add_task(one_line(file, 40), total=total)
        self._progress.update(self._tasks[file], completed=rows, total=total)

    def _open(self) -> None:
        from rich import progress

        from clair_apo.terminal import console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,} rows"),
            progress.TimeRemainingColumn(),
            console=console(sys.stderr),
            transient=True,
        )
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
