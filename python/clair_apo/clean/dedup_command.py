"""`clair-apo dedup`: flags, and what runs behind them.

Importing this is cheap, for `clair-apo --help`: what is heavy comes in when a command runs.
"""

from __future__ import annotations

import argparse
import sys

from clair_apo.clean.command import INPUT, OUTPUT
from clair_apo.progress import Bar, print_json


def dedup_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `dedup`."""
    parser.description = (
        "Copies a table without rows whose text is that of a row that stays, or near it. Near is a\n"
        "Jaccard similarity of at least the threshold between the sets of shingles (runs of five\n"
        "words, lower-cased). Candidates come from MinHash, which finds 99% of such pairs or more\n"
        "(fewer within thousands of texts that are all alike, and then says so),\n"
        "and each is verified exactly. A row goes only if it is near one that stays, never through\n"
        "a chain. Case and white space make no difference. Rows without such a text stay.\n"
        "Of a table with labels (prompt, completion, label) one row of each prompt stays,\n"
        "whatever its label."
    )
    parser.epilog = (
        "example:\n  clair-apo dedup pairs.parquet --output unique.parquet --clusters gone.parquet\n\n"
        "Texts are put aside in a temporary file while it runs; TMPDIR names its folder."
    )
    parser.add_argument(
        "file", metavar="FILE", help=f"preference pairs, or any table with prompts: {INPUT}"
    )
    parser.add_argument("--output", required=True, metavar="OUT", help=OUTPUT)
    parser.add_argument(
        "--on",
        choices=("prompt", "pair", "chosen", "rejected"),
        default="prompt",
        help="the text to compare (prompt); pair is the prompt and both answers together",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        metavar="J",
        help="the least similarity of near duplicates, 0.1 to 1 (0.8)",
    )
    parser.add_argument("--shingle", type=int, default=5, metavar="N", help="words of a shingle (5)")
    parser.add_argument("--exact", action="store_true", help="only equal texts go, not near ones")
    parser.add_argument(
        "--keep",
        choices=("first", "most-contrastive", "shortest"),
        default="first",
        help="which row of several stays: the first one (default), the one whose answers differ in the "
        "smallest share of characters (but not in none), or the one with the shortest text; with the "
        "last two the order of the input makes no difference",
    )
    parser.add_argument(
        "--clusters",
        metavar="FILE",
        help="write here for each row that went because of which row, and how near: .parquet or .jsonl",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the hashes that find candidates (0)"
    )


def run_dedup(args: argparse.Namespace) -> int:
    """Copies the rows that stay; returns the exit status."""
    from clair_apo.clean import summary
    from clair_apo.clean.duplicates import dedup

    with Bar(quiet=args.quiet) as bar:
        found = dedup(
            args.file,
            args.output,
            on=args.on,
            threshold=args.threshold,
            shingle=args.shingle,
            exact=args.exact,
            keep=args.keep,
            clusters=args.clusters,
            seed=args.seed,
            on_progress=bar.update,
        )
    if args.json:
        print_json(found)
        return 0
    lines = [
        ("rows out", found["rows_out"], ""),
        ("exact", found["exact"], f"the {args.on} is that of a row that stays"),
    ]
    if not args.exact:
        note = f"Jaccard {args.threshold:g} or more with a row that stays"
        lines.append(("near", found["near"], note))
    if found["unreadable"]:
        lines.append(("unreadable", found["unreadable"], "could not be read, so not copied"))
    lines.append(("groups", found["groups"], "rows that stay and have such duplicates"))
    if found["without_text"]:
        lines.append(("no text", found["without_text"], "stay, as there was nothing to compare"))
    if found["undecided"]:
        note = "stay; of too many similar texts not all were compared with each"
        lines.append(("undecided", found["undecided"], note))
    lines += summary.skipped_lines(found["skipped_reasons"])
    summary.show(summary.from_to(found), found["rows_in"], lines)
    if not args.exact and not args.quiet:
        finds = (
            "which find fewer than 99% of the pairs near the threshold, as some rows are undecided."
            if found["recall"] is None
            else f"which find {found['recall']:.1%} of the pairs at the threshold and more of nearer ones."
        )
        print(
            f"Candidates: {found['bands']} bands of {found['band_rows']} minima, {finds}",
            file=sys.stderr,
        )
    return 0
