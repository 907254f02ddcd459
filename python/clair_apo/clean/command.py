"""`clair-apo filter`, `convert`, `split` and `decontaminate`: flags, and what runs behind them.

Importing this is cheap, for `clair-apo --help`: what is heavy comes in when a command runs.
"""

from __future__ import annotations

import argparse

from clair_apo.progress import Bar, print_json

_INPUT = ".parquet, .jsonl (also .gz, .zst), .csv, a folder or a quoted glob"


def filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `filter`."""
    parser.description = (
        "Copies the rows for which a SQL condition is true, in their order and with all columns.\n"
        "The condition may use the columns of the table, fields of structs (usage.cost_usd), lists\n"
        "(ARRAY_CONTAINS(flags, 'comment_cut'), ARRAY_LENGTH(flags) = 0), and these measures, which\n"
        "are computed where the table lacks them: jaccard, levenshtein, levenshtein_ratio,\n"
        "word_edits, word_edit_ratio, chosen_chars, rejected_chars, chosen_words, rejected_words,\n"
        "chosen_tokens, rejected_tokens (o200k_base), length_ratio, identical. Text goes in single\n"
        "quotes, odd names in double ones. A row for which the condition is null does not stay."
    )
    parser.epilog = (
        'example:\n  clair-apo filter pairs.parquet --where "levenshtein < 800 and jaccard > 0.3" \\\n'
        "    --output contrastive.parquet"
    )
    parser.add_argument("file", metavar="FILE", help=f"a table: {_INPUT}")
    parser.add_argument("--where", required=True, metavar="EXPR", help="the condition, in SQL")
    parser.add_argument("--output", required=True, metavar="OUT", help=_OUTPUT)


_OUTPUT = "the file to write: .parquet or .jsonl (also .gz, .zst)"


def run_filter(args: argparse.Namespace) -> int:
    """Copies the rows that the condition holds for; returns the exit status."""
    from clair_apo.clean import summary
    from clair_apo.clean.filter import filter_rows
    from clair_apo.terminal import one_line

    with Bar(quiet=args.quiet) as bar:
        found = filter_rows(args.file, args.where, args.output, bar.update)
    if args.json:
        print_json(found)
        return 0
    lines = [
        ("rows out", found["rows_out"], one_line(found["where"])),
        ("left out", found["left_out"], "the condition is false"),
    ]
    if found["undecided"]:
        lines.append(("undecided", found["undecided"], "the condition is null: left out"))
    lines += summary.skipped_lines(found["skipped_reasons"])
    summary.show(summary.from_to(found), found["rows_in"], lines)
    return 0
