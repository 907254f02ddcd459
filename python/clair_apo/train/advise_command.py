"""`clair-apo advise`: flags, and what runs behind them. Importing this is cheap, for `--help`."""

from __future__ import annotations

import argparse

from clair_apo.progress import Bar, print_json


def advise_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `advise`."""
    parser.description = (
        "Which of APO-zero and APO-down suits these pairs and the model to be trained: APO-zero where the\n"
        "chosen answers are better than its own, APO-down where they are not. Counted are ratings, then\n"
        "where the answers come from. Without evidence it refuses to guess."
    )
    parser.epilog = "example:\n  clair-apo advise pairs.parquet --model meta-llama/Meta-Llama-3-8B-Instruct"
    parser.add_argument("file", metavar="PAIRS", help="preference pairs, as for stats")
    parser.add_argument("--model", required=True, metavar="M", help="the model to be trained, name or path")


def run_advise(args: argparse.Namespace) -> int:
    """Prints the advice; returns the exit status."""
    from clair_apo.train.advise import advise

    with Bar(quiet=args.quiet) as bar:
        advice = advise(args.file, args.model, bar.update)
    if args.json:
        print_json(advice.document())
    else:
        from clair_apo.terminal import console

        console().print(advice.text(), soft_wrap=True)
    return 0
