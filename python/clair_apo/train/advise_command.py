"""`clair-apo advise`: flags, and what runs behind them. Importing this is cheap, for `--help`."""

from __future__ import annotations

import argparse

from clair_apo.flags import positive
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
    parser.add_argument(
        "--likelihoods",
        type=positive,
        metavar="N",
        help="also how likely the answers of N pairs are to the model: a diagnosis that decides nothing",
    )


def run_advise(args: argparse.Namespace) -> int:
    """Prints the advice; returns the exit status."""
    from clair_apo.train.advise import advise

    with Bar(quiet=args.quiet) as bar:
        advice = advise(args.file, args.model, bar.update)
    seen = None
    if args.likelihoods:
        from clair_apo.train.likelihoods import likelihoods

        with Bar(quiet=args.quiet) as bar:
            seen = likelihoods(
                args.file, args.model, args.likelihoods, lambda n, of: bar.update("likelihoods", n, of)
            )
    if args.json:
        print_json({**advice.document(), "likelihoods": seen and seen.document()})
    else:
        from clair_apo.terminal import console

        console().print(advice.text(), soft_wrap=True)
        if seen is not None:
            console().print(seen.text(), soft_wrap=True)
    return 0
