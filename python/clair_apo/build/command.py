"""`clair-apo build-pairs` and `clair-apo templates`."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from clair_apo import files, terminal
from clair_apo.build import answers, batch, forecast, judge_templates, renaming, summary, templates
from clair_apo.build.calls import Interrupted, make_calls
from clair_apo.build.methods import Method, load
from clair_apo.build.options import BuildOptions
from clair_apo.build.parties import Parties, open_backends, resolve, run
from clair_apo.build.progress import Progress
from clair_apo.build.results import Counts, write_tables
from clair_apo.build.roles import JUDGE, MODEL, REVISER, STRONGER
from clair_apo.build.rows import Columns, Input, Survey
from clair_apo.build.talk import Recipe
from clair_apo.errors import EXIT_INTERRUPTED, EXIT_OK, ClairError, UsageError
from clair_apo.llm.asking import Asker
from clair_apo.llm.batch_book import Book
from clair_apo.llm.ledger import Ledger
from clair_apo.llm.secrets import shown_url
from clair_apo.llm.spending import Spending, cost_of

# Settings that mean something where they are not set, too; others may be left out of a later start.
PLAIN_IF_UNSET = ("minimality", "best-of", "rounds", "edits-template")


def _embedded_note(parties: Parties) -> str:
    does, bad_at = "answers and revises", "reviser"
    if JUDGE in parties.roles:
        does, bad_at = "answers, revises and judges", "reviser, a poor judge, and slow at it"
    return (
        f"No model is named, so the small embedded one (SmolLM2-135M-Instruct) {does}, with a "
        f"short template. That is for trying the pipeline, not for real data: it is a poor {bad_at}."
    )


def run_build(args: argparse.Namespace) -> int:
    """The command. Returns its exit status; expected trouble is raised as ClairError."""
    options = BuildOptions.of(args)
    try:
        result = build(options)
    except (Interrupted, KeyboardInterrupt):
        print(
            "Interrupted. What was answered is kept; run the same command again to go on.",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(terminal.safe(_words(result, options)))
    if (left_out := batch.left_out(result, options)) is not None:
        raise left_out
    return EXIT_OK


def _words(result: dict[str, Any], options: BuildOptions) -> str:
    """What was done, for people."""
    if options.dry_run:
        return forecast.as_text(result)
    parts = [batch.as_text(result["batch"])] if "batch" in result else []
    if "rows_in" not in result and (waiting := result["batch"].get("waiting")):
        parts.append(f"no tables were written: {waiting:,} pairs still wait for replies")
    return "\n".join(parts + ([summary.as_text(result, options)] if "rows_in" in result else []))


def build(options: BuildOptions) -> dict[str, Any]:
    """Builds the pairs that `options` describe; returns what `summary.json` holds, or with `dry_run` the
    forecast."""
    from clair_apo import __version__

    begun = time.monotonic()
    methods = load(options.methods)
    source = Input(options.input, _columns(options, methods), options.limit, options.sample, options.seed)
    files.check_output(options.output_path)
    _check_distinct(source, methods, options)
    names = [method.name for method in methods]
    renaming.plan(options, names, source.paths)  # what cannot be is told before anything is asked
    survey = source.survey()
    parties = resolve(options, methods, survey)
    recipe = parties.recipe(options)
    if options.dry_run:
        return forecast.forecast(source, methods, recipe, parties, options)
    book = Book(options.beside(".run"))
    _check_batches(book, parties, options)
    if options.batch == "status":
        return {"batch": batch.status(book, parties)}
    with Ledger(options.beside(".run"), fresh=options.fresh) as ledger:
        book = Book(ledger.folder)  # anew: until now another start may have had it
        _check_batches(book, parties, options)
        if options.fresh:
            book.clear()
        identity = parties.identity(options, methods)
        _check_settings(ledger, identity, options)
        with Progress(survey.rows, options.quiet) as progress, _fewer_collections():
            _announce(progress, parties, survey, methods, ledger, options)
            handed = None
            if options.batch:
                job = batch.Job(source, methods, recipe, parties, options, ledger, book, progress)
                handed = batch.submit(job) if options.batch == "submit" else batch.collect(job)
                whole = options.batch == "collect" and not handed["waiting"]
                if not whole and not _tells_more(handed, survey.rows * len(methods), options):
                    return {"batch": handed}
            asker = Asker(ledger, parties.roles, watcher=progress)
            if not options.batch:
                run(_ask(source, methods, recipe, asker, parties, options, progress), asker.halt)
            renaming.carry_out(renaming.plan(options, names, source.paths), options, progress.say)
            tables: dict[str, Counts] = {}
            for method in methods:
                progress.writing()
                looking = Asker(ledger, parties.roles)
                tables[method.name] = write_tables(
                    source, survey, method, recipe, looking, options, progress
                )
        result = summary.as_json(
            tables,
            ledger.spent(),
            _cost(ledger, parties),
            progress.calls_from_ledger,
            time.monotonic() - begun,
            {**_shown_flags(options), "resolved": identity},
            __version__,
            judged=JUDGE in parties.roles,
        )
        if handed is not None:
            result["batch"] = handed
        with files.replacing(options.beside(".run") / "summary.json") as path:
            path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def _tells_more(handed: dict[str, Any], rows: int, options: BuildOptions) -> bool:
    """Whether tables without the rows that wait for replies hold something, and no fewer rows than those
    that are there. `rows` is how many there are, over all methods."""
    if not handed.get("ready"):
        return False
    try:
        last = json.loads((options.beside(".run") / "summary.json").read_text("utf-8"))
        before = int(last["rows_in"]) - int(last.get("waiting", 0))
    except (OSError, ValueError, KeyError):
        return True
    return rows - int(handed["waiting"]) >= before


def _columns(options: BuildOptions, methods: list[Method]) -> Columns:
    answers_column = options.answers_column
    off_policy = any(JUDGE in method.may_ask for method in methods)
    if off_policy and not answers_column and not options.answer_columns:
        answers_column = answers.USUAL_COLUMN
    return Columns(
        options.prompt_column,
        options.response_column,
        options.id_column,
        options.more_response_columns,
        answers_column,
        options.answer_columns,
        options.rating_columns,
    )


@contextlib.contextmanager
def _fewer_collections() -> Iterator[None]:
    """Each call makes some hundred objects, none of them in cycles: looking for those at every seven
    hundred takes a tenth of the time."""
    before = gc.get_threshold()
    gc.freeze()  # what is there stays, and is not looked at again
    gc.set_threshold(20_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _ask(
    source: Input,
    methods: list[Method],
    recipe: Recipe,
    asker: Asker,
    parties: Parties,
    options: BuildOptions,
    progress: Progress,
) -> None:
    asker.backends = open_backends(parties, progress.say, progress.retried)
    spent = _cost(asker.ledger, parties)
    if options.max_cost is not None:
        if spent is None:
            raise UsageError(
                "--max-cost: this run folder holds calls to a model whose price is not known; name it in "
                "--prices FILE"
            )
        asker.spending = Spending(options.max_cost, spent)
        for role in parties.roles:
            if (longest := asker.ledger.longest_output(role)) is not None:
                asker.spending.remember(role, longest)
    backends = set(asker.backends.values())
    progress.watch(backends, parties.roles, spent)
    try:
        await make_calls(
            source,
            methods,
            recipe,
            asker,
            progress,
            concurrency=options.concurrency,
            retry_failed=options.retry_failed,
            max_consecutive_failures=options.max_consecutive_failures,
        )
    finally:
        for backend in backends:
            await backend.close()


def _cost(ledger: Ledger, parties: Parties) -> float | None:
    """USD over the life of the run folder at today's prices; None where one is not known."""
    spent = ledger.spent()
    return cost_of(spent, parties.prices((item.role, item.model) for item in spent))


def _announce(
    progress: Progress,
    parties: Parties,
    survey: Survey,
    methods: list[Method],
    ledger: Ledger,
    options: BuildOptions,
) -> None:
    if parties.embedded:
        progress.say(_embedded_note(parties))
    if ledger.mended:
        progress.say(f"WARNING: {ledger.mended}")
    earlier = sum(item.calls for item in ledger.spent())
    if earlier:
        progress.say(f"going on in {ledger.folder}: {earlier:,} calls are there already")

    def at(role: str) -> str:
        url = parties.roles[role].url
        return f"{parties.roles[role].name} " + (f"at {url}" if url else "in this process")

    parts = [f"{survey.rows:,} rows"]
    own = max(method.own_answers(options.samples) for method in methods)
    if (missing := survey.lacking(own)) and MODEL in parties.roles:
        parts.append(f"{missing:,} answers from {parties.roles[MODEL].name}")
    if STRONGER in parties.roles:
        parts.append(f"fresh answers from {at(STRONGER)}")
    if REVISER in parties.roles and parties.template:
        parts += [f"revisions from {at(REVISER)}", f"template {parties.template.name}"]
        if parties.edits_template:
            parts[-1] = f"template {parties.edits_template.name}, or {parties.template.name} in full"
    if parties.judges and parties.judge_template:
        names = ", ".join(judge.name for judge in parties.judges)
        parts.append(f"judged by {names} ({parties.judge_template.name})")
    progress.say(", ".join(parts))
    for words in parties.shown_prices():
        progress.say(words)


def _check_distinct(source: Input, methods: list[Method], options: BuildOptions) -> None:
    outputs = {
        path.resolve()
        for tables in (options.tables(method.name) for method in methods)
        for path in (tables.pairs, tables.dropped, tables.failures)
    }
    for path in source.paths:
        if path.resolve() in outputs:
            raise UsageError(f"{path} is the input and would be overwritten; choose another --output")


def _check_batches(book: Book, parties: Parties, options: BuildOptions) -> None:
    """Refuses what would pay again for calls that are in open batches, and batches of what is in this
    process."""
    if options.batch:
        here = next((party.name for party in parties.roles.values() if party.endpoint is None), None)
        if here is not None:
            raise UsageError(f"--batch: {here} is in this process, and no service takes batches for it")
    if not book.open_calls:
        return
    if options.fresh:
        raise UsageError(
            f"--fresh: {book.open_calls:,} calls are in open batches and would be lost; collect them first"
        )
    if not options.batch:
        raise ClairError(
            f"{book.open_calls:,} calls are in open batches, and would be paid a second time now; --batch "
            "collect takes their replies once they are done"
        )


def _check_settings(ledger: Ledger, now: dict[str, Any], options: BuildOptions) -> None:
    """Refuses to mix replies to different questions in one run folder."""
    before = ledger.fact("settings")
    if before is not None and not options.go_on:
        then, here = _in_any_order(before), _in_any_order(now)
        changed = [
            name
            for name in {**now, **before}
            if here.get(name) != then.get(name)
            and (name in PLAIN_IF_UNSET or None not in (here.get(name), then.get(name)))
        ]
        if changed:
            lines = [
                f"  {name}: {_shown(before.get(name))} before, {_shown(now.get(name))} now"
                for name in changed
            ]
            raise UsageError(
                f"{ledger.folder} was begun with other settings:\n"
                + "\n".join(lines)
                + "\nUse another --output, --continue to go on with the new ones (equal requests are "
                "not paid again), or --fresh to begin anew."
            )
    kept = {
        name: value
        for name, value in (before or {}).items()
        if now.get(name) is None and name not in PLAIN_IF_UNSET
    }
    ledger.set_fact("settings", {**now, **kept})


def _in_any_order(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are compared: the same methods and the same judges in another order are the same
    run."""
    found = {**settings, "method": sorted(settings["method"].split(","))}
    if settings.get("judge"):
        judges, urls = (settings[name].split(", ") for name in ("judge", "judge-url"))
        if len(judges) > 1:
            found |= {"judge": sorted(judges), "judge-url": sorted(zip(judges, urls, strict=True))}
    return found


def _shown_flags(options: BuildOptions) -> dict[str, Any]:
    """The flags as they may be stored: a URL can hold a password."""
    flags = asdict(options)
    for name in (f"{role}_url" for role in (MODEL, REVISER, STRONGER)):
        flags[name] = shown_url(flags[name]) if flags[name] else None
    if options.judge_url:  # several judges may have one each
        flags["judge_url"] = ",".join(shown_url(url) for url in options.judge_url.split(","))
    return flags


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_templates(args: argparse.Namespace) -> int:
    """Lists the templates of revisers and judges, or shows the one that is named."""
    revising, judging = templates.built_in(), judge_templates.built_in()
    if args.name:
        of_judge = args.name.partition("@")[0] in {name.partition("@")[0] for name in judging}
        template = judge_templates.load(args.name) if of_judge else templates.load(args.name)
        if args.json:
            print(json.dumps(asdict(template), indent=2))
        else:
            print(terminal.safe(template.text))
        return EXIT_OK
    if args.json:
        known = [*map(asdict, revising.values()), *map(asdict, judging.values())]
        print(json.dumps(known, indent=2))
        return EXIT_OK
    for title, listed in (("of the reviser", revising), ("of the judge", judging)):
        print(f"{title}:")
        for template in listed.values():
            print(f"  {template.name:16}{template.description}")
    print(
        "\n`clair-apo templates NAME` shows one; a file of your own works as --template FILE or "
        "--judge-template FILE.",
        file=sys.stderr,
    )
    return EXIT_OK


def build_pairs(**flags: Any) -> dict[str, Any]:
    """`clair-apo build-pairs` as a function: the flags by name, `input` at least.

    Returns what `summary.json` holds. Raises TypeError for an unknown flag, ClairError (with its
    `exit_code`) where the command would end with a message, KeyboardInterrupt after Ctrl-C.
    """
    from clair_apo.cli import namespace

    try:
        return build(BuildOptions.of(namespace("build-pairs", {"quiet": True, **flags})))
    except Interrupted:
        raise KeyboardInterrupt from None
