"""`clair-apo build-pairs` and `clair-apo templates`."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from clair_apo import files, terminal
from clair_apo.build import forecast, summary, templates
from clair_apo.build.calls import Interrupted, make_calls
from clair_apo.build.checks import Band
from clair_apo.build.clair import Clair
from clair_apo.build.options import BuildOptions
from clair_apo.build.parties import Parties, open_backends, resolve, run
from clair_apo.build.progress import Progress
from clair_apo.build.results import write_tables
from clair_apo.build.rows import Columns, Input, Survey
from clair_apo.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from clair_apo.llm.asking import Asker
from clair_apo.llm.ledger import Ledger
from clair_apo.llm.secrets import shown_url
from clair_apo.llm.spending import Spending, cost_of

EMBEDDED_NOTE = (
    "No model is named, so the small embedded one (SmolLM2-135M-Instruct) answers and revises, with a "
    "short template. That is for trying the pipeline, not for real data: it is a poor reviser."
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
        words = forecast.as_text(result) if options.dry_run else summary.as_text(result, options)
        print(terminal.safe(words))
    return EXIT_OK


def build(options: BuildOptions) -> dict[str, Any]:
    """Builds the pairs that `options` describe; returns what `summary.json` holds, or with `dry_run` the
    forecast."""
    from clair_apo import __version__

    begun = time.monotonic()
    source = Input(
        options.input,
        Columns(options.prompt_column, options.response_column, options.id_column),
        options.limit,
        options.sample,
        options.seed,
    )
    files.check_output(options.output_path)
    _check_distinct(source, options)
    survey = source.survey()
    parties = resolve(options, survey.without_response)
    method = Clair(parties.template, Band(*options.minimality) if options.minimality else None)
    if options.dry_run:
        return forecast.forecast(source, method, parties, options)
    with Ledger(options.beside(".run"), fresh=options.fresh) as ledger:
        _check_settings(ledger, parties, options)
        with Progress(survey.rows, options.quiet) as progress, _fewer_collections():
            _announce(progress, parties, survey, ledger)
            asker = Asker(ledger, parties.roles, watcher=progress)
            run(_ask(source, method, asker, parties, options, progress), asker.halt)
            progress.writing()
            looking = Asker(ledger, parties.roles)
            counts = write_tables(source, survey, method, looking, parties, options, progress)
        settings = {**_shown_flags(options), "resolved": parties.identity(options)}
        result = summary.as_json(
            counts,
            ledger.spent(),
            _cost(ledger, parties),
            asker.from_ledger,
            time.monotonic() - begun,
            settings,
            __version__,
        )
        with files.replacing(options.beside(".run") / "summary.json") as path:
            path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


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
    method: Clair,
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
            method,
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


def _announce(progress: Progress, parties: Parties, survey: Survey, ledger: Ledger) -> None:
    if parties.embedded:
        progress.say(EMBEDDED_NOTE)
    if ledger.mended:
        progress.say(f"WARNING: {ledger.mended}")
    earlier = sum(item.calls for item in ledger.spent())
    if earlier:
        progress.say(f"going on in {ledger.folder}: {earlier:,} calls are there already")
    parts = [f"{survey.rows:,} rows"]
    if survey.without_response and parties.model:
        parts.append(f"{survey.without_response:,} answers from {parties.model.name}")
    parts.append(
        f"revisions from {parties.reviser.name}"
        + (f" at {parties.reviser.url}" if parties.reviser.url else " in this process")
    )
    progress.say(", ".join(parts) + f", template {parties.template.name}")
    for words in parties.shown_prices():
        progress.say(words)


def _check_distinct(source: Input, options: BuildOptions) -> None:
    outputs = {
        path.resolve()
        for path in (
            options.output_path,
            options.beside(".dropped.parquet"),
            options.beside(".failures.parquet"),
        )
    }
    for path in source.paths:
        if path.resolve() in outputs:
            raise UsageError(f"{path} is the input and would be overwritten; choose another --output")


def _check_settings(ledger: Ledger, parties: Parties, options: BuildOptions) -> None:
    """Refuses to mix replies to different questions in one run folder."""
    now = parties.identity(options)
    before = ledger.fact("settings")
    if before is not None and not options.go_on:
        changed = [
            name
            for name in now
            if (before.get(name) is not None and now[name] != before[name])
            or (name == "minimality" and now[name] != before.get(name))
        ]
        if changed:
            lines = [
                f"  {name}: {_shown(before.get(name))} before, {_shown(now[name])} now" for name in changed
            ]
            raise UsageError(
                f"{ledger.folder} was begun with other settings:\n"
                + "\n".join(lines)
                + "\nUse another --output, --continue to go on with the new ones (equal requests are "
                "not paid again), or --fresh to begin anew."
            )
    kept = {name: value for name, value in (before or {}).items() if now.get(name) is None}
    ledger.set_fact("settings", {**now, **kept, "minimality": now["minimality"]})


def _shown_flags(options: BuildOptions) -> dict[str, Any]:
    """The flags as they may be stored: a URL can hold a password."""
    flags = asdict(options)
    for name in ("model_url", "reviser_url"):
        flags[name] = shown_url(flags[name]) if flags[name] else None
    return flags


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_templates(args: argparse.Namespace) -> int:
    """Lists the templates, or shows the one that is named."""
    if args.name:
        template = templates.load(args.name)
        if args.json:
            print(json.dumps(asdict(template), indent=2))
        else:
            print(terminal.safe(template.text))
        return EXIT_OK
    known = templates.built_in()
    if args.json:
        print(json.dumps([asdict(template) for template in known.values()], indent=2))
        return EXIT_OK
    for template in known.values():
        print(f"{template.name:16}{template.description}")
    print(
        "\n`clair-apo templates NAME` shows one; a file of your own works as --template FILE.",
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
