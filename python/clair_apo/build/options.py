"""The flags of build-pairs and what they resolve to."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_apo.build.endpoint_options import APIS, endpoint_arguments
from clair_apo.build.judge_options import add_judge_arguments
from clair_apo.errors import UsageError
from clair_apo.flags import above_zero, named, not_negative, positive

if TYPE_CHECKING:
    from clair_apo.llm.prices import Price

EXAMPLE = """example:
  clair-apo build-pairs --input prompts.parquet --reviser gpt-4o --output pairs.parquet
  clair-apo build-pairs --input prompts.parquet --reviser claude-sonnet-4-5 --api anthropic
  clair-apo build-pairs --input prompts.parquet --reviser gpt-4o --batch submit

Without a model flag both the model and the reviser are the small embedded one: for trying the
pipeline, not for real data."""


# As `clair_apo.build.methods` has them; the help must not load what that imports.
METHODS = ("clair", "on-policy-judge", "off-policy-judge", "stronger-preferred")


@dataclass(frozen=True, slots=True)
class Tables:
    """The files of one method."""

    pairs: Path
    dropped: Path
    failures: Path


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The flags of `clair-apo build-pairs` under their own names; see its help for what each means."""

    input: str
    output: str = "pairs.parquet"
    prompt_column: str = "prompt"
    response_column: str | None = None
    more_response_columns: tuple[str, ...] = ()
    answers_column: str | None = None
    answer_columns: tuple[str, ...] = ()
    rating_columns: tuple[str, ...] = ()
    id_column: str | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    method: str = "clair"
    samples: int = 2
    best_of: int = 1
    rounds: int = 1
    round_pairs: str = "ends"
    reply_format: str = "full"
    pick: str | None = None
    model: str | None = None
    model_url: str | None = None
    model_key_env: str | None = None
    model_api: str | None = None
    model_temperature: float | None = None
    model_top_p: float | None = None
    model_max_tokens: int | None = None
    model_reasoning_effort: str | None = None
    model_extra_body: Mapping[str, Any] | None = None
    reviser: str | None = None
    reviser_url: str | None = None
    reviser_key_env: str | None = None
    reviser_api: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    reasoning_effort: str | None = None
    extra_body: Mapping[str, Any] | None = None
    template: str | None = None
    stronger: str | None = None
    stronger_url: str | None = None
    stronger_key_env: str | None = None
    stronger_api: str | None = None
    stronger_temperature: float | None = None
    stronger_top_p: float | None = None
    stronger_max_tokens: int | None = None
    stronger_reasoning_effort: str | None = None
    stronger_extra_body: Mapping[str, Any] | None = None
    judge: str | None = None
    judge_url: str | None = None
    judge_key_env: str | None = None
    judge_api: str | None = None
    judge_temperature: float | None = None
    judge_top_p: float | None = None
    judge_max_tokens: int | None = None
    judge_reasoning_effort: str | None = None
    judge_extra_body: Mapping[str, Any] | None = None
    judge_template: str | None = None
    verify: bool = False
    api: str = "openai"
    concurrency: int = 64
    rpm: float | None = None
    tpm: float | None = None
    timeout: float = 600.0
    retries: int = 6
    stream: bool = False
    max_consecutive_failures: int = 50
    price: Price | None = None
    model_price: Price | None = None
    stronger_price: Price | None = None
    judge_price: Price | None = None
    prices: str | None = None
    max_cost: float | None = None
    dry_run: bool = False
    minimality: tuple[float, float] | None = None
    length_ratio: tuple[float, float] | None = None
    drop: tuple[str, ...] = ()
    fresh: bool = False
    go_on: bool = False
    batch: str | None = None
    batch_dir: str | None = None
    retry_failed: bool = False
    json: bool = False
    quiet: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> BuildOptions:
        """The options that a parsed command line holds. Raises UsageError for impossible pairs."""
        names = {item.name for item in fields(cls)}
        options = cls(**{name: value for name, value in vars(args).items() if name in names})
        if options.fresh and (options.go_on or options.retry_failed):
            raise UsageError(
                "--fresh uses nothing of the earlier run, so it does not go together with "
                "--continue or --retry-failed"
            )
        if options.batch_dir and not options.batch:
            raise UsageError("--batch-dir says where the files of --batch submit, status and collect are")
        for flag, given in (
            ("--fresh", options.fresh),
            ("--retry-failed", options.retry_failed),
            ("--dry-run", options.dry_run),
        ):
            if given and options.batch in ("status", "collect"):
                raise UsageError(
                    f"{flag} is about what is to be asked: it goes with --batch submit, not {options.batch}"
                )
        options._check_columns()
        return options

    def _check_columns(self) -> None:
        if self.rating_columns and not self.answer_columns:
            raise UsageError(
                "--rating-columns goes with --answer-columns; an --answers-column has its ratings in it"
            )
        if self.answers_column and self.answer_columns:
            raise UsageError("--answers-column and --answer-columns are two ways to say the same; give one")
        if len(self.answer_columns) == 1:
            raise UsageError(
                "--answer-columns names one column; a pair is made of the answers of two or more"
            )
        if self.rating_columns and len(self.rating_columns) != len(self.answer_columns):
            raise UsageError(
                f"--rating-columns names {len(self.rating_columns)} columns for "
                f"{len(self.answer_columns)} of --answer-columns"
            )

    def names(self, *roles: str) -> bool:
        """Whether one of some roles (`model`, `reviser`, `stronger`, `judge`) has a name or a URL."""
        return any(getattr(self, role) or getattr(self, f"{role}_url") for role in roles)

    @property
    def methods(self) -> list[str]:
        """The methods as `--method` names them."""
        return self.method.split(",")

    @property
    def output_path(self) -> Path:
        return Path(self.output)

    def tables(self, method: str) -> Tables:
        """Where the pairs of a method go: `pairs.parquet`, or with several methods
        `pairs.METHOD.parquet`."""
        if len(self.methods) > 1:
            return self.tables_of(method, self.output_path.name.removeprefix(self._stem))
        return Tables(self.output_path, self.beside(".dropped.parquet"), self.beside(".failures.parquet"))

    def tables_of(self, method: str, ending: str) -> Tables:
        """The tables that bear the name of a method, its pairs with `ending` (`.parquet`)."""
        return Tables(
            *(self.beside(f".{method}{end}") for end in (ending, ".dropped.parquet", ".failures.parquet"))
        )

    def beside(self, ending: str) -> Path:
        """A name beside the output: `pairs.parquet` and `.failures.parquet` make
        `pairs.failures.parquet`."""
        return self.output_path.with_name(self._stem + ending)

    @property
    def _stem(self) -> str:
        return re.sub(r"\.(parquet|jsonl|jsonl\.gz|jsonl\.zst)$", "", self.output_path.name, flags=re.I)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of build-pairs to `parser`."""
    parser.epilog = EXAMPLE
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="Parquet, JSONL (.gz, .zst) or CSV with a column of prompts; a folder or a "
        "quoted glob of them",
    )
    group.add_argument(
        "--output",
        default="pairs.parquet",
        metavar="FILE",
        help="the pairs, .parquet or .jsonl (default: %(default)s); failures, dropped "
        "pairs and the run folder stand beside it",
    )
    group.add_argument("--prompt-column", type=named, default="prompt", metavar="NAME")
    group.add_argument(
        "--response-column",
        metavar="NAME",
        help="the model's own answers, where there are some (default: response)",
    )
    group.add_argument(
        "--more-response-columns",
        type=column_names,
        default=(),
        metavar="NAME[,NAME]",
        help="further answers of the model's own, for on-policy-judge",
    )
    group.add_argument(
        "--answers-column",
        metavar="NAME",
        help="answers of other models, for off-policy-judge: a list of model, response and "
        "overall_score or rating (default: completions)",
    )
    group.add_argument(
        "--answer-columns",
        type=column_names,
        default=(),
        metavar="NAME,NAME[,NAME]",
        help="the same, each in a column of its own",
    )
    group.add_argument(
        "--rating-columns",
        type=column_names,
        default=(),
        metavar="NAME,NAME[,NAME]",
        help="the ratings of --answer-columns, in their order",
    )
    group.add_argument("--id-column", metavar="NAME", help="ids of your own (default: a hash)")
    group.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    group.add_argument("--sample", type=positive, metavar="N", help="N rows drawn at random")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of --sample (default: 0)")
    group.add_argument(
        "--method",
        type=method_names,
        default="clair",
        metavar="NAME[,NAME]",
        help=f"how pairs are made: {', '.join(METHODS)}, or module:Class of your own; of several, "
        "each has tables of its own (default: %(default)s)",
    )
    group.add_argument(
        "--samples",
        type=at_least_two,
        default=2,
        metavar="N",
        help="answers of the model among which on-policy-judge picks (default: %(default)s)",
    )
    group.add_argument(
        "--pick",
        choices=["rating", "judge"],
        help="how off-policy-judge picks (default: by the judge where one is named, else by rating)",
    )

    group = parser.add_argument_group(
        "the model to be aligned",
        "asked only where a row has no response; a name, local:FOLDER or local:smollm2",
    )
    group.add_argument("--model", type=named, metavar="NAME")
    endpoint_arguments(group, "model", "model-")
    group = parser.add_argument_group("the reviser", "a name, local:FOLDER or local:smollm2")
    group.add_argument("--reviser", type=named, metavar="NAME")
    endpoint_arguments(group, "reviser", "")
    group.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="how the reviser is asked (`clair-apo templates`; default: paper, and "
        "answer-only for local:smollm2)",
    )

    group.add_argument(
        "--reply-format",
        choices=["full", "edits"],
        default="full",
        help="whole answers, or search-and-replace edits, and a whole answer where these do not apply "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--best-of",
        type=positive,
        default=1,
        metavar="N",
        help="revisions of an answer, of which the one that changed the least is kept; with --verify, of "
        "those that the judge finds better (default: %(default)s)",
    )
    group.add_argument(
        "--rounds",
        type=positive,
        default=1,
        metavar="N",
        help="revise the revision, while the judge finds it better than the one before, at most so often "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--round-pairs",
        choices=["ends", "neighbours"],
        default="ends",
        help="of several rounds: one pair of the first and the last text, or one of each two neighbours "
        "(default: %(default)s)",
    )
    group = parser.add_argument_group(
        "the stronger model", "it answers afresh for stronger-preferred (default: the reviser)"
    )
    group.add_argument("--stronger", type=named, metavar="NAME")
    endpoint_arguments(group, "stronger", "stronger-")
    add_judge_arguments(parser)
    group = parser.add_argument_group("what counts as a good pair")
    group.add_argument(
        "--minimality",
        type=share_band,
        metavar="LOW..HIGH",
        help="band of the edit ratio; outside of it the reviser is asked once more",
    )
    group.add_argument(
        "--length-ratio",
        type=band,
        metavar="LOW..HIGH",
        help="band of chosen over rejected length; outside of it a pair is flagged (default: 0.5..2)",
    )
    group.add_argument(
        "--drop",
        type=flag_names,
        default=(),
        metavar="FLAG[,FLAG]",
        help="leave out pairs with these flags: truncated_look, leaked_frame, "
        "comment_cut, prompt_cut, code_fence, script_switch, length_ratio, edit_ratio, rating_tie, "
        "not_verified",
    )

    group = parser.add_argument_group("calls")
    group.add_argument(
        "--api",
        choices=APIS,
        default="openai",
        help="what the servers speak: chat completions, as OpenAI's and most others do, or Anthropic's "
        "Messages, with a --max-tokens of 4096 where none is given (default: %(default)s)",
    )
    group.add_argument(
        "--concurrency",
        type=positive,
        default=64,
        metavar="N",
        help="calls in flight at a server, fewer where it suffers (default: %(default)s)",
    )
    group.add_argument("--rpm", type=above_zero, metavar="N", help="requests a minute to a server, at most")
    group.add_argument("--tpm", type=above_zero, metavar="N", help="tokens a minute, in and out, at most")
    group.add_argument(
        "--timeout",
        type=above_zero,
        default=600.0,
        metavar="S",
        help="seconds for one try of a call (default: %(default)g)",
    )
    group.add_argument(
        "--retries",
        type=not_negative,
        default=6,
        metavar="N",
        help="further tries where the way failed (default: %(default)s)",
    )
    group.add_argument(
        "--stream",
        action="store_true",
        help="have replies streamed, for gateways that cut long silent ones",
    )
    group.add_argument(
        "--max-consecutive-failures",
        type=not_negative,
        default=50,
        metavar="N",
        help="stop when so many rows in a row fail on the way (default: %(default)s; 0: never)",
    )

    group = parser.add_argument_group(
        "batches",
        "calls at half price within a day, in place of calls now: submit, and once they are done collect; "
        "again while there is more to ask",
    )
    group.add_argument(
        "--batch",
        choices=["submit", "status", "collect"],
        help="submit hands over every call that can be made and is not answered, collect takes the replies "
        "and writes the tables of the rows that miss none; a method that asks step by step takes several "
        "rounds",
    )
    group.add_argument(
        "--batch-dir",
        metavar="FOLDER",
        help="no service, but files in FOLDER: submit writes NAME.requests.jsonl for `vllm run-batch`, "
        "collect reads NAME.results.jsonl",
    )

    group = parser.add_argument_group("cost")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what it would take: calls, tokens, USD",
    )
    group.add_argument(
        "--max-cost",
        type=above_zero,
        metavar="USD",
        help="stop before the run folder has cost more; a higher one goes on",
    )
    group.add_argument(
        "--price",
        type=price,
        metavar="IN,OUT",
        help="USD per million tokens (default: the list prices that come along, where they know the model)",
    )
    group.add_argument("--model-price", type=price, metavar="IN,OUT", help="of the model to be aligned")
    group.add_argument("--stronger-price", type=price, metavar="IN,OUT", help="of the stronger model")
    group.add_argument("--judge-price", type=price, metavar="IN,OUT", help="of the judges")
    group.add_argument(
        "--prices",
        metavar="FILE",
        help="YAML or JSON: a model's name and [IN, OUT], or {input, output, cached_input}",
    )

    group = parser.add_argument_group("a run that was begun before")
    group.add_argument("--fresh", action="store_true", help="begin anew; nothing is used again")
    group.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="go on with changed settings; equal requests are not paid again",
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="ask again for what failed with a paid reply, too: rows, verdicts, some of several revisions",
    )


def band(text: object) -> tuple[float, float]:
    """`0.05..0.6` as a pair."""
    if isinstance(text, tuple | list) and len(text) == 2:
        text = f"{text[0]}..{text[1]}"
    low, dots, high = str(text).partition("..")
    try:
        pair = float(low), float(high)
    except ValueError:
        pair = None
    if not dots or pair is None or not 0 <= pair[0] <= pair[1] < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a band such as 0.05..0.6")
    return pair


def share_band(text: object) -> tuple[float, float]:
    """A band of a ratio that cannot exceed 1."""
    pair = band(text)
    if pair[0] >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is a band that no revision can lie in; the most is 1")
    return pair


def price(text: object) -> Price:
    from clair_apo.llm.prices import parse_price

    try:
        return parse_price(text, "as given")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def method_names(text: object) -> str:
    """Names of methods with commas, as one text without spaces."""
    parts = text.split(",") if isinstance(text, str) else text
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a method")
    names = [part.strip() for part in parts if part.strip()]
    for name in names:
        module, colon, own = name.partition(":")
        if name not in METHODS and not (colon and module and own.isidentifier()):
            near = difflib.get_close_matches(name, METHODS, 1, 0.5)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise argparse.ArgumentTypeError(
                f"{name!r} is no method; known are {', '.join(METHODS)}, and module:Class of your "
                f"own{meant}"
            )
    if not names:
        raise argparse.ArgumentTypeError("no method is named")
    return ",".join(names)


def column_names(text: object) -> tuple[str, ...]:
    """Names of columns with commas."""
    parts = text.split(",") if isinstance(text, str) else text
    if not isinstance(parts, list | tuple):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of columns")
    names = tuple(named(part) for part in parts)
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"a column stands there twice: {', '.join(names)}")
    return names


def at_least_two(text: object) -> int:
    number = positive(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} is fewer than the two that a pair needs")
    return number


def flag_names(text: object) -> tuple[str, ...]:
    from clair_apo.build.checks import parse_flags

    try:
        return tuple(sorted(parse_flags(text)))  # type: ignore[arg-type]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
