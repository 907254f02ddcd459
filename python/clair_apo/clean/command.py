"""`clair-apo filter`, `convert`, `split` and `decontaminate`: flags, and what runs behind them.

Importing this is cheap, for `clair-apo --help`: what is heavy comes in when a command runs.
"""

from __future__ import annotations

import argparse

from clair_apo.progress import Bar, print_json

INPUT = ".parquet, .jsonl (also .gz, .zst), .csv, a folder or a quoted glob"
OUTPUT = (
    "the file to write: .parquet or .jsonl (also .gz, and .zst, which `datasets` reads only where the "
    "package zstandard is installed)"
)
_PROMPTS = "the column with the prompts, if not `prompt`"


def filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `filter`."""
    parser.description = (
        "Copies the rows for which a SQL condition is true, in their order and with all columns.\n"
        "The condition may use the columns of the table, fields of structs (usage.cost_usd), lists\n"
        "(ARRAY_CONTAINS(flags, 'comment_cut'), ARRAY_LENGTH(flags) = 0), and these measures, which\n"
        "are computed where the table lacks them: jaccard, levenshtein, levenshtein_ratio,\n"
        "word_edits, word_edit_ratio, chosen_chars, rejected_chars, chosen_words, rejected_words,\n"
        "chosen_tokens, rejected_tokens (o200k_base), length_ratio, identical. Text goes in single\n"
        "quotes, odd names in double ones. Where a column or a measure is null, the rest of the\n"
        "condition decides, and a row for which all of it is null does not stay. A number divided by\n"
        "0 is infinite, and 0 / 0 is NaN, which counts as larger than every number. A categorical\n"
        "(dictionary) column is written as its values."
    )
    parser.epilog = (
        'example:\n  clair-apo filter pairs.parquet --where "levenshtein < 800 and jaccard > 0.3" \\\n'
        "    --output contrastive.parquet"
    )
    parser.add_argument("file", metavar="FILE", help=f"a table: {INPUT}")
    parser.add_argument("--where", required=True, metavar="EXPR", help="the condition, in SQL")
    parser.add_argument("--output", required=True, metavar="OUT", help=OUTPUT)


def run_filter(args: argparse.Namespace) -> int:
    """Copies the rows that the condition holds for; returns the exit status."""
    from clair_apo.clean import summary
    from clair_apo.clean.filtering import filter_rows
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
    lines += summary.skipped_lines(found["unmeasured"], "unmeasured")
    summary.show(summary.from_to(found), found["rows_in"], lines)
    return 0


FORMATS = ("trl", "trl-text", "clair32k", "unpaired", "jsonl", "hub")


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `convert`."""
    parser.description = (
        "Writes the pairs of a table of any known shape in the shape that another tool reads:\n\n"
        "  trl       prompt, chosen, rejected as lists of messages: TRL's DPOTrainer\n"
        "  trl-text  the same as plain strings, which TRL trains on without a chat template\n"
        "  clair32k  as the published dataset ultrafeedback_clair_32k: prompt as text, the whole\n"
        "            conversation in both answers, `rational`\n"
        "  unpaired  prompt, completion, label, two rows a pair: TRL's KTOTrainer\n"
        "  jsonl     every row with all its columns as JSON Lines\n"
        "  hub       tables of build-pairs with all their columns as the folder of a dataset on the Hub,\n"
        "            with a card: recipe, models, counts, contrastiveness\n\n"
        "Other columns are left out, but for jsonl and hub. Rows that hold no pair are counted and named."
    )
    parser.epilog = "example:\n  clair-apo convert pairs.parquet --to unpaired"
    parser.add_argument("file", metavar="FILE", help=f"preference pairs: {INPUT}")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the shape to write")
    parser.add_argument(
        "--output",
        metavar="OUT",
        help=f"{OUTPUT} (beside the input, as NAME.SHAPE.parquet or NAME.jsonl); for hub a new folder",
    )
    parser.add_argument(
        "--push-to-hub", metavar="REPO", help="upload it as a private dataset, owner/name (with --to hub)"
    )
    parser.add_argument(
        "--license", metavar="NAME", help="what the card names, such as cc-by-4.0 (with --to hub)"
    )


def run_convert(args: argparse.Namespace) -> int:
    """Writes the pairs in another shape; returns the exit status."""
    from clair_apo.clean import summary
    from clair_apo.clean.conversion import convert

    with Bar(quiet=args.quiet) as bar:
        found = convert(args.file, args.to, args.output, bar.update, args.push_to_hub, args.license)
    if args.json:
        print_json(found)
        return 0
    lines = [("rows out", found["rows_out"], f"as {found['to']}")]
    if found["to"] == "unpaired":
        lines.insert(0, ("pairs", found["pairs"], "two rows each"))
    lines += summary.skipped_lines(found["skipped_reasons"])
    summary.show(summary.from_to(found), found["rows_in"], lines)
    return 0


def split_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `split`."""
    parser.description = (
        "Splits a table into NAME.train and NAME.test by prompt: all rows of a prompt are on one side.\n"
        "The side follows from the prompt and the seed alone, so the same prompt is on the same side in\n"
        "every file. Prompts that differ only in case, white space or Unicode form count as the same;\n"
        "prompts that are merely similar do not: run dedup --on prompt first where they matter."
    )
    parser.epilog = "example:\n  clair-apo split pairs.parquet --test 0.02 --seed 1"
    parser.add_argument("file", metavar="FILE", help=f"a table with prompts: {INPUT}")
    parser.add_argument(
        "--test", type=_share, default=0.02, metavar="SHARE", help="share of the prompts to test on (0.02)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another split (0)")
    parser.add_argument("--output-dir", metavar="DIR", help="where to write the files (beside the input)")
    parser.add_argument("--prompt-column", metavar="NAME", help=_PROMPTS)


def _share(value: str | float) -> float:
    share = float(value)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return share


def run_split(args: argparse.Namespace) -> int:
    """Writes both parts; returns the exit status."""
    from clair_apo.clean import summary
    from clair_apo.clean.splitting import split
    from clair_apo.terminal import one_line

    with Bar(quiet=args.quiet) as bar:
        found = split(args.file, args.test, args.seed, args.output_dir, args.prompt_column, bar.update)
    if args.json:
        print_json(found)
        return 0
    outputs = found["outputs"]
    lines = [(part, found[part], one_line(outputs[part])) for part in ("train", "test")]
    lines += summary.skipped_lines(found["skipped_reasons"])
    summary.show(one_line(found["file"]), found["rows_in"], lines)
    return 0


def decontaminate_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `decontaminate`."""
    parser.description = (
        "Leaves out rows that hold the items of a benchmark. A row goes if its prompt, its chosen or its\n"
        "rejected answer has at least --share of the n-grams of one text of an item: n words in a row, in\n"
        "lower case, punctuation counted as words. Each match is shown with its words, since false hits\n"
        "are to be expected: two texts may quote the same law, formula or licence.\n\n"
        "  --share 0   a single n-gram is enough: finds more, and mostly common phrases\n"
        "  boilerplate n-grams in more than 10 items, or in more than 10 rows and --boilerplate of all\n"
        "              rows, count for nothing; what was set aside is shown\n"
        "  short texts of fewer than n words match only an equal text; below n / 2 words none at all"
    )
    parser.epilog = (
        "example:\n  clair-apo decontaminate pairs.parquet --against mmlu.parquet gsm8k.jsonl \\\n"
        "    --output clean.parquet --matches matches.jsonl"
    )
    parser.add_argument("file", metavar="FILE", help=f"pairs, or a table with prompts: {INPUT}")
    parser.add_argument(
        "--against",
        nargs="+",
        required=True,
        metavar="BENCH",
        help="benchmarks: files as for FILE, or .txt with an item a line",
    )
    parser.add_argument("--output", required=True, metavar="OUT", help=OUTPUT)
    parser.add_argument("--ngram", type=int, default=8, metavar="N", help="words of an n-gram (8)")
    parser.add_argument(
        "--share",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="share of a text's n-grams that makes a hit (0.5)",
    )
    parser.add_argument(
        "--on",
        choices=("all", "prompt", "chosen", "rejected"),
        default="all",
        help="the texts to look at (all; of a table without pairs, the prompt)",
    )
    parser.add_argument(
        "--against-column",
        nargs="+",
        metavar="NAME",
        help="the benchmarks' columns to look for (all that hold text)",
    )
    parser.add_argument(
        "--boilerplate",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="share of all rows beyond which an n-gram is boilerplate (0.01); 1: none is by rows",
    )
    parser.add_argument("--matches", metavar="FILE", help="write every match: .parquet or .jsonl")
    parser.add_argument("--prompt-column", metavar="NAME", help=_PROMPTS)


def run_decontaminate(args: argparse.Namespace) -> int:
    """Leaves the contaminated rows out; returns the exit status."""
    from clair_apo.clean.contamination import decontaminate, show

    with Bar(quiet=args.quiet) as bar:
        found = decontaminate(
            args.file,
            args.against,
            args.output,
            ngram=args.ngram,
            share=args.share,
            on=args.on,
            against_column=args.against_column,
            boilerplate=args.boilerplate,
            matches=args.matches,
            prompt_column=args.prompt_column,
            on_progress=bar.update,
        )
    if args.json:
        print_json(found)
    else:
        show(found)
    return 0
