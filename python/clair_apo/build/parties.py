"""Who is asked: the model to be aligned, the reviser, the stronger model and the judges, as the flags name
them and the methods need them."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clair_apo.build import effect, judge_templates, templates
from clair_apo.build.checks import Band
from clair_apo.build.endpoint_options import SAMPLING, key_from
from clair_apo.build.judge_templates import JudgeTemplate
from clair_apo.build.methods import Method
from clair_apo.build.methods.off_policy_judge import OffPolicyJudge
from clair_apo.build.options import BuildOptions
from clair_apo.build.roles import ALL, JUDGE, MODEL, REVISER, STRONGER, judges
from clair_apo.build.rows import Survey
from clair_apo.build.talk import BY_JUDGE, BY_RATING, Recipe
from clair_apo.build.templates import Template
from clair_apo.errors import ClairError, UsageError
from clair_apo.llm.asking import Party
from clair_apo.llm.chat import Backend
from clair_apo.llm.endpoint import (
    ANTHROPIC,
    DEFAULT_URL,
    DEFAULT_URLS,
    Endpoint,
    EndpointClient,
    default_headers,
    default_url,
    normal_url,
)
from clair_apo.llm.messages import MAX_TOKENS
from clair_apo.llm.prices import Price, list_price, read_prices

LOCAL = "local:"
# What a run opens besides connections: the tables, the ledger, libraries.
OTHER_FILES = 128
# For calls in flight to come home, and a little more.
INTERRUPT_SECONDS = 6.0
EMBEDDED = "local:smollm2"
# A small model asked for more than this rambles; its answers to the sample prompts need half of it.
EMBEDDED_MAX_TOKENS = 320

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Parties:
    """Those who are asked, by the roles under which a method asks them, and the templates that are used."""

    roles: dict[str, Party]
    template: Template | None
    edits_template: Template | None
    judge_template: JudgeTemplate | None
    book: _Prices
    embedded: bool = field(default=False)  # no model flag at all: for trying the pipeline

    @property
    def judges(self) -> list[Party]:
        return [self.roles[role] for role in judges(self.roles)]

    @property
    def aligned(self) -> str | None:
        """Whose answers the given ones are, as far as the flags tell."""
        model = self.roles.get(MODEL)
        return model.name if model and not self.embedded else None

    def shown_prices(self) -> list[str]:
        """The prices that the run counts with, for people."""
        known = {p.name: p.price for p in self.roles.values() if p.endpoint and p.price}
        return [f"{name}: {price.words}" for name, price in known.items()]

    def prices(self, called: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Price]:
        """The prices of models by (role, name), as far as they are known; also of those that an earlier
        start of the run folder asked."""
        found: dict[tuple[str, str], Price] = {}
        for role, name in called:
            party = self.roles.get(role)
            if party is not None and party.name == name:
                price = party.price
            else:
                other = party or self.roles.get(REVISER)
                where = other.endpoint if other else None
                price = self.book.of(role, name, None if name.startswith(LOCAL) else where or _ANYWHERE)
            if price is not None:
                found[role, name] = price
        return found

    def recipe(self, options: BuildOptions) -> Recipe:
        """How the methods of a run ask."""
        return Recipe(
            names={role: party.name for role, party in self.roles.items()},
            aligned=self.aligned,
            template=self.template,
            edits_template=self.edits_template,
            minimality=Band(*options.minimality) if options.minimality else None,
            judge_template=self.judge_template,
            samples=options.samples,
            best_of=options.best_of,
            rounds=options.rounds,
            pick=pick(options),
            verify=options.verify,
        )

    def identity(self, options: BuildOptions, methods: Sequence[Method]) -> dict[str, Any]:
        """The settings that decide what the replies of a run mean; a run folder holds one such set."""
        model, reviser, stronger = (self.roles.get(role) for role in (MODEL, REVISER, STRONGER))
        found: dict[str, Any] = {
            "method": options.method,
            "model": model.name if model else None,
            "model-url": model.url if model else None,
            "model-sampling": model.params if model else None,
            "reviser": reviser.name if reviser else None,
            "reviser-url": reviser.url if reviser else None,
            "sampling": reviser.params if reviser else None,
            "template": f"{self.template.name} ({self.template.digest})" if self.template else None,
            "minimality": list(options.minimality) if options.minimality else None,
        }
        if options.best_of > 1:
            found["best-of"] = options.best_of
        if options.rounds > 1:
            found["rounds"] = options.rounds
        if self.edits_template:
            found["edits-template"] = f"{self.edits_template.name} ({self.edits_template.digest})"
        if stronger:
            found |= {
                "stronger": stronger.name,
                "stronger-url": stronger.url,
                "stronger-sampling": stronger.params,
            }
        if self.judges and self.judge_template:
            found |= {
                "judge": ", ".join(judge.name for judge in self.judges),
                "judge-url": ", ".join(judge.url or "in this process" for judge in self.judges),
                "judge-sampling": self.judges[0].params,
                "judge-template": f"{self.judge_template.name} ({self.judge_template.digest})",
            }
        if (samples := max(method.own_answers(options.samples) for method in methods)) > 1:
            found["samples"] = samples
        if any(JUDGE in method.may_ask for method in methods):
            found["pick"] = pick(options)
        return found


# For the price of a model that is asked no more, where nothing tells the server.
_ANYWHERE = Endpoint(DEFAULT_URL)


class _Prices:
    """What calls cost: as the flags say, else as the table that comes along does."""

    def __init__(self, options: BuildOptions) -> None:
        self._of_all = options.price
        self._of = {
            MODEL: options.model_price,
            REVISER: options.price,
            STRONGER: options.stronger_price,
            JUDGE: options.judge_price,
        }
        self._by_name = read_prices(Path(options.prices)) if options.prices else {}

    def of(self, role: str, name: str, endpoint: Endpoint | None) -> Price | None:
        if endpoint is None:
            return Price(0.0, 0.0, source="in this process")
        given = self._of[role.partition("-")[0]]
        if given is not None:
            return given
        return self._by_name.get(name) or self._of_all or list_price(name, endpoint.url)


def pick(options: BuildOptions) -> str:
    """How a pair is picked from answers of other models: by the judge where one is named, unless told."""
    return options.pick or (BY_JUDGE if options.names(JUDGE) else BY_RATING)


def resolve(options: BuildOptions, methods: Sequence[Method], survey: Survey) -> Parties:
    """Settles who is asked by `methods` for the rows of `survey`.

    Raises UsageError for half a configuration, ClairError where there is no endpoint to ask.
    """
    wanted = _wanted(options, methods)
    template = templates.load(options.template) if options.template else None
    if template is not None and template.reply == templates.EDITS:
        raise UsageError(
            f"--template {options.template} is one of edits; --reply-format edits asks with it"
        )
    by_edits = REVISER in wanted and options.reply_format == templates.EDITS
    edits_template = templates.load("edits") if by_edits else None
    judge_template = judge_templates.load(options.judge_template or "pairwise") if JUDGE in wanted else None
    prices = _Prices(options)
    if wanted and not options.names(*ALL):
        embedded = Party(EMBEDDED, {}, None, prices.of(REVISER, EMBEDDED, None))
        return Parties(
            {role: _local(role, embedded, _sampling(options, role)) for role in wanted},
            (template or templates.load("answer-only")) if REVISER in wanted else None,
            edits_template,
            judge_template,
            prices,
            embedded=True,
        )
    if REVISER in wanted and not options.names(REVISER):
        raise UsageError(
            "--model names the model to be aligned, but no reviser is named; give "
            "--reviser NAME (and --reviser-url for a server other than OpenAI's)"
            if options.names(MODEL)
            else "no reviser is named; give --reviser NAME (and --reviser-url for a server other than "
            "OpenAI's)"
        )
    roles: dict[str, Party] = {}
    if REVISER in wanted:
        roles[REVISER] = _named(options, REVISER, prices)
    if STRONGER in wanted:
        roles[STRONGER] = _stronger(options, prices)
    if JUDGE in wanted:
        roles |= _judges(options, prices)
    own = max(method.own_answers(options.samples) for method in methods)
    if MODEL in wanted and options.names(MODEL):
        roles[MODEL] = _named(options, MODEL, prices)
    elif lacking := survey.rows_lacking(own):
        raise UsageError(_no_model(lacking, own))
    if options.max_cost is not None:
        asked = [party for role, party in roles.items() if role != MODEL or survey.lacking(own)]
        if unknown := next((party.name for party in asked if party.price is None), None):
            raise UsageError(
                f"--max-cost needs a price, and none is known for {unknown}; give --price IN,OUT in USD "
                "per million tokens, or --prices FILE"
            )
    if REVISER in wanted and template is None:
        template = templates.load("answer-only" if roles[REVISER].name == EMBEDDED else "paper")
    return Parties(roles, template if REVISER in wanted else None, edits_template, judge_template, prices)


def _wanted(options: BuildOptions, methods: Sequence[Method]) -> list[str]:
    """The roles that the methods ask, in a fixed order. Raises UsageError for a role that is asked and not
    named, and for flags without effect."""
    asks = {role for method in methods for role in method.asks}
    may_ask = {role for method in methods for role in method.may_ask}
    by_judge = pick(options) == BY_JUDGE
    by_rounds = options.rounds > 1 and REVISER in asks
    if options.verify or by_rounds or (JUDGE in may_ask and by_judge):
        asks.add(JUDGE)
    names = ", ".join(method.name for method in methods)
    unrated = options.answer_columns and not options.rating_columns
    if unrated and not by_judge and any(method.name == OffPolicyJudge.name for method in methods):
        raise UsageError(
            f"--method {OffPolicyJudge.name} picks by rating where no judge is named, and --answer-columns "
            "have none; give --rating-columns, or --judge NAME"
        )
    if options.names(JUDGE) and JUDGE not in asks:
        raise UsageError(
            f"a judge is named, but --method {names} asks none here; --verify puts it behind any method"
        )
    if JUDGE in asks and options.names(*ALL) and not options.names(JUDGE):
        why = next((f"--method {m.name}" for m in methods if JUDGE in m.asks), None)
        why = why or ("--verify" if options.verify else "--rounds" if by_rounds else "--pick judge")
        raise UsageError(
            f"{why} needs a judge; give --judge NAME (and --judge-url for a server other than OpenAI's)"
        )
    effect.check(options, methods, asks)
    return [role for role in (REVISER, MODEL, STRONGER, JUDGE) if role in asks]


def _no_model(rows: int, own: int) -> str:
    have = "1 row has" if rows == 1 else f"{rows} rows have"
    if own > 1:
        return (
            f"{have} fewer than {own} answers of the model's own, and no --model is named that could be "
            "asked for more; give --model NAME, or name columns of answers with --response-column and "
            "--more-response-columns"
        )
    return (
        f"{have} no response to revise, and no --model is named that could be asked "
        "for one; give --model NAME, or name the column of the answers with "
        "--response-column"
    )


def _named(options: BuildOptions, role: str, prices: _Prices) -> Party:
    """The party of a role that has one, as its flags say."""
    name, url, key_env, api = (getattr(options, role + end) for end in ("", "_url", "_key_env", "_api"))
    return _party(options, role, name, url, key_env, api, _sampling(options, role), prices)


def _stronger(options: BuildOptions, prices: _Prices) -> Party:
    """The stronger model: where it is not named, the reviser with its sampling."""
    if options.names(STRONGER):
        return _named(options, STRONGER, prices)
    if not options.names(REVISER):
        raise UsageError(
            "no stronger model is named; give --stronger NAME, or --reviser NAME to have that one answer"
        )
    reviser = _with(_named(options, REVISER, prices), _sampling(options, STRONGER))
    return replace(reviser, price=prices.of(STRONGER, reviser.name, reviser.endpoint))


def _judges(options: BuildOptions, prices: _Prices) -> dict[str, Party]:
    """The judges by role; several names share one URL and key, or have as many of their own."""
    names: list[str | None] = [
        name.strip() for name in (options.judge or "").split(",") if name.strip()
    ] or [None]
    if len(set(names)) < len(names):
        raise UsageError(f"--judge {options.judge}: a judge stands there twice")

    def each(flag: str, value: str | None) -> list[str | None]:
        if value is None or len(names) == 1:
            return [value] * len(names)
        values: list[str | None] = [part.strip() for part in value.split(",")]
        if len(values) not in (1, len(names)):
            raise UsageError(
                f"{flag} has {len(values)} parts for {len(names)} judges; give one, or one each"
            )
        return values * len(names) if len(values) == 1 else values

    urls, keys = each("--judge-url", options.judge_url), each("--judge-key-env", options.judge_key_env)
    apis = each("--judge-api", options.judge_api)
    found = {}
    for number, (name, url, key, api) in enumerate(zip(names, urls, keys, apis, strict=True)):
        role = JUDGE if not number else f"{JUDGE}-{number + 1}"
        found[role] = _party(options, JUDGE, name, url, key, api, _sampling(options, JUDGE), prices)
    return found


def open_backends(parties: Parties, say: Say, on_retry: Callable[[str], None]) -> dict[str, Backend]:
    """The backends by role; one where several roles are the same."""
    made: dict[object, Backend] = {}

    def backend(party: Party) -> Backend:
        where = party.endpoint or party.name
        if where not in made:
            if party.endpoint:
                made[where] = EndpointClient(party.endpoint, on_retry)
            else:
                from clair_apo.llm.batching import LocalBackend

                made[where] = LocalBackend(party.name.removeprefix(LOCAL), say)
        return made[where]

    places = {party.endpoint for party in parties.roles.values() if party.endpoint}
    _allow_connections(sum(place.concurrency for place in places))
    return {role: backend(party) for role, party in parties.roles.items()}


def _allow_connections(number: int) -> None:
    """Lets this process open so many connections; many systems allow 256 or 1,024 files unless asked."""
    needed = number + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        raise UsageError(
            f"--concurrency asks for {number:,} connections, and this system allows {hard:,} open files "
            "(ulimit -n); choose a lower one, or raise that"
        ) from None


def _with(party: Party, params: dict[str, Any]) -> Party:
    return Party(party.name, {**party.params, **params}, party.endpoint, party.price)


def _local(role: str, party: Party, params: dict[str, Any]) -> Party:
    """A model in this process with the parameters of a role. Raises UsageError for unknown ones."""
    if unknown := sorted(params.keys() - {"temperature", "top_p", "max_tokens", "seed"}):
        raise UsageError(f"--{role} {party.name} is in this process and takes no {unknown[0]}")
    if party.name == EMBEDDED:
        params = {"max_tokens": EMBEDDED_MAX_TOKENS, **params}
    return _with(party, params)


def _sampling(options: BuildOptions, role: str) -> dict[str, Any]:
    """The parameters that were set for a role; a server's own defaults hold for the others."""
    prefix = "" if role == REVISER else f"{role}_"
    values = {name: getattr(options, prefix + name) for name in SAMPLING}
    found = {name: value for name, value in values.items() if value is not None}
    return {**found, **(getattr(options, prefix + "extra_body") or {})}


def _party(
    options: BuildOptions,
    role: str,
    name: str | None,
    url: str | None,
    key_env: str | None,
    api: str | None,
    params: dict[str, Any],
    prices: _Prices,
) -> Party:
    if name and name.startswith(LOCAL):
        for flag, given in (("url", url), ("key-env", key_env), ("api", api)):
            if given:
                raise UsageError(f"--{role} {name} is in this process, so --{role}-{flag} has no meaning")
        return _local(role, Party(name, {}, None, prices.of(role, name, None)), params)
    api = api or options.api
    usual = "ANTHROPIC_API_KEY" if api == ANTHROPIC else "OPENAI_API_KEY"
    key = key_from(key_env, usual)
    address = normal_url(url, api=api) if url else default_url(api)
    if options.batch_dir:  # nothing is called: files are written
        if api == ANTHROPIC:
            raise UsageError(
                f"--batch-dir: vllm run-batch takes chat completions, not --{role}-api anthropic"
            )
    elif address == DEFAULT_URLS[api] and key is None:
        raise ClairError(
            f"no endpoint for --{role} {name or ''}: give --{role}-url for a server of "
            f"your own, or set {usual} for {'Anthropic' if api == ANTHROPIC else 'OpenAI'}'s"
        )
    if api == ANTHROPIC:  # such a request must say how long its reply may be
        params = {"max_tokens": MAX_TOKENS, **params}
    endpoint = Endpoint(
        address,
        key,
        options.timeout,
        options.retries,
        options.concurrency,
        options.rpm,
        options.tpm,
        options.stream,
        default_headers(api),
        api,
    )
    known = name or _only_model(endpoint, role)
    return Party(known, params, endpoint, prices.of(role, known, endpoint))


def _only_model(endpoint: Endpoint, role: str) -> str:
    """The name of the one model that a server has. Raises UsageError where it lists several."""

    async def listed() -> list[str]:
        client = EndpointClient(endpoint)
        try:
            return await client.models()
        finally:
            await client.close()

    try:
        names: list[str] = run(listed())
    except ClairError as error:
        raise UsageError(
            f"--{role}-url is given without a name, and {error}; give --{role} NAME"
        ) from error
    if len(names) != 1:
        has = f"lists {len(names)} models: {', '.join(names[:10])}" if names else "lists no model"
        raise UsageError(
            f"--{role}-url is given without a name, and {endpoint.shown} {has}; give --{role} NAME"
        )
    return names[0]


def run(coroutine: Any, stop: Callable[[], None] | None = None) -> Any:
    """`asyncio.run`, also from where a loop runs already, such as a notebook: there in a thread, in which
    `stop` is called after Ctrl-C."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    from concurrent.futures import ThreadPoolExecutor

    task: asyncio.Task[Any] | None = None

    async def inside() -> Any:
        nonlocal task
        task = asyncio.current_task()
        return await coroutine

    pool = ThreadPoolExecutor(1)
    try:
        future = pool.submit(asyncio.run, inside())
        try:
            return future.result()
        except KeyboardInterrupt:
            if task is not None:
                for end, seconds in ((stop, INTERRUPT_SECONDS), (task.cancel, 2.0)):
                    if end is not None and not future.done():
                        task.get_loop().call_soon_threadsafe(end)
                        with contextlib.suppress(Exception, asyncio.CancelledError):
                            future.result(seconds)
            raise
    finally:
        pool.shutdown(wait=False)
