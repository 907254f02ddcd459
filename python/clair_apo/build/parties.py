"""Who is asked: the model to be aligned and the reviser, as the flags name them."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clair_apo.build import templates
from clair_apo.build.clair import MODEL, REVISER
from clair_apo.build.options import BuildOptions, key_from
from clair_apo.build.templates import Template
from clair_apo.errors import ClairError, UsageError
from clair_apo.llm.asking import Party
from clair_apo.llm.chat import Backend
from clair_apo.llm.endpoint import (
    DEFAULT_URL,
    Endpoint,
    EndpointClient,
    default_headers,
    default_url,
    normal_url,
)
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
    model: Party | None
    reviser: Party
    template: Template
    book: _Prices
    embedded: bool = field(default=False)  # no model flag at all: for trying the pipeline

    @property
    def roles(self) -> dict[str, Party]:
        """The parties by the names under which a method asks them."""
        return {REVISER: self.reviser} | ({MODEL: self.model} if self.model else {})

    @property
    def aligned(self) -> str | None:
        """Whose answers the given ones are, as far as the flags tell."""
        return self.model.name if self.model and not self.embedded else None

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
                where = (party or self.reviser).endpoint
                price = self.book.of(role, name, None if name.startswith(LOCAL) else where or _ANYWHERE)
            if price is not None:
                found[role, name] = price
        return found

    def identity(self, options: BuildOptions) -> dict[str, Any]:
        """The settings that decide what the replies of a run mean; a run folder holds one such set."""
        return {
            "method": options.method,
            "model": self.model.name if self.model else None,
            "model-url": self.model.url if self.model else None,
            "model-sampling": self.model.params if self.model else None,
            "reviser": self.reviser.name,
            "reviser-url": self.reviser.url,
            "sampling": self.reviser.params,
            "template": f"{self.template.name} ({self.template.digest})",
            "minimality": list(options.minimality) if options.minimality else None,
        }


# For the price of a model that is asked no more, where nothing tells the server.
_ANYWHERE = Endpoint(DEFAULT_URL)


class _Prices:
    """What calls cost: as the flags say, else as the table that comes along does."""

    def __init__(self, options: BuildOptions) -> None:
        self._of_all = options.price
        self._of_model = options.model_price
        self._by_name = read_prices(Path(options.prices)) if options.prices else {}

    def of(self, role: str, name: str, endpoint: Endpoint | None) -> Price | None:
        if endpoint is None:
            return Price(0.0, 0.0, source="in this process")
        if role == MODEL and self._of_model is not None:
            return self._of_model
        if role == REVISER and self._of_all is not None:
            return self._of_all
        return self._by_name.get(name) or self._of_all or list_price(name, endpoint.url)


def resolve(options: BuildOptions, without_response: int) -> Parties:
    """Settles who is asked. `without_response` is the number of rows whose answer is to be sampled.

    Raises UsageError for half a configuration, ClairError where there is no endpoint to ask.
    """
    template = templates.load(options.template) if options.template else None
    prices = _Prices(options)
    flags = (options.model, options.model_url, options.reviser, options.reviser_url)
    if not any(flags):
        price = prices.of(REVISER, EMBEDDED, None)
        party = Party(EMBEDDED, {"max_tokens": EMBEDDED_MAX_TOKENS}, None, price)
        return Parties(
            _with(party, _sampling(options, "model_")),
            _with(party, _sampling(options, "")),
            template or templates.load("answer-only"),
            prices,
            embedded=True,
        )
    if not options.reviser and not options.reviser_url:
        raise UsageError(
            "--model names the model to be aligned, but no reviser is named; give "
            "--reviser NAME (and --reviser-url for a server other than OpenAI's)"
        )
    reviser = _party(
        options,
        "reviser",
        options.reviser,
        options.reviser_url,
        options.reviser_key_env,
        _sampling(options, ""),
        prices,
    )
    model = None
    if options.model or options.model_url:
        model = _party(
            options,
            "model",
            options.model,
            options.model_url,
            options.model_key_env,
            _sampling(options, "model_"),
            prices,
        )
    elif without_response:
        rows = "1 row has" if without_response == 1 else f"{without_response} rows have"
        raise UsageError(
            f"{rows} no response to revise, and no --model is named that could be asked "
            "for one; give --model NAME, or name the column of the answers with "
            "--response-column"
        )
    asked = [party for party in (reviser, model if without_response else None) if party]
    if options.max_cost is not None and any(party.price is None for party in asked):
        unknown = next(party.name for party in asked if party.price is None)
        raise UsageError(
            f"--max-cost needs a price, and none is known for {unknown}; give --price IN,OUT in USD per "
            "million tokens, or --prices FILE"
        )
    default = "answer-only" if reviser.name == EMBEDDED else "paper"
    return Parties(model, reviser, template or templates.load(default), prices)


def open_backends(parties: Parties, say: Say, on_retry: Callable[[str], None]) -> dict[str, Backend]:
    """The backends by role; one where both roles are the same."""
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
    backends = {REVISER: backend(parties.reviser)}
    if parties.model:
        backends[MODEL] = backend(parties.model)
    return backends


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


def _sampling(options: BuildOptions, prefix: str) -> dict[str, Any]:
    """The parameters that were set; a server's own defaults hold for the others."""
    names = ("temperature", "top_p", "max_tokens", "reasoning_effort")
    values = {name: getattr(options, prefix + name) for name in names}
    found = {name: value for name, value in values.items() if value is not None}
    return {**found, **(getattr(options, prefix + "extra_body") or {})}


def _party(
    options: BuildOptions,
    role: str,
    name: str | None,
    url: str | None,
    key_env: str | None,
    params: dict[str, Any],
    prices: _Prices,
) -> Party:
    if name and name.startswith(LOCAL):
        if url:
            raise UsageError(f"--{role} {name} is in this process, so --{role}-url has no meaning")
        if name == EMBEDDED:
            params = {"max_tokens": EMBEDDED_MAX_TOKENS, **params}
        unknown = sorted(params.keys() - {"temperature", "top_p", "max_tokens", "seed"})
        if unknown:
            raise UsageError(f"--{role} {name} is in this process and takes no {unknown[0]}")
        return Party(name, params, None, prices.of(role, name, None))
    key = key_from(key_env)
    address = normal_url(url or default_url())
    if address == DEFAULT_URL and key is None:
        raise ClairError(
            f"no endpoint for --{role} {name or ''}: give --{role}-url for a server of "
            "your own, or set OPENAI_API_KEY for OpenAI's"
        )
    endpoint = Endpoint(
        address,
        key,
        options.timeout,
        options.retries,
        options.concurrency,
        options.rpm,
        options.tpm,
        options.stream,
        default_headers(),
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
