"""`clair-apo stats` and `clair-apo diff`: flags, and what runs behind them.

Importing this is cheap, for `clair-apo --help`: what is heavy comes in when a command runs.
"""

from __future__ import annotations

import argparse

from clair_apo.progress import Bar, print_json

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

    with Bar(quiet=args.quiet) as bar:
        report = stats(args.files, bar.update)
    if args.json:
        print_json(report)
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
    with Bar(quiet=args.quiet) as bar:
        pairs = diff.select(args.file, name, value, args.seed, bar.update)
    if args.json:
        print_json(diff.document(args.file, pairs))
    else:
        from clair_apo.terminal import console

        diff.show(args.file, pairs, console())
    return 0
