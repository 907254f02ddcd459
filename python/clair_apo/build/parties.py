"""Who is asked: the model to be aligned and the reviser, as the flags name them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clair_apo.build import templates
from clair_apo.build.options import BuildOptions, key_from
from clair_apo.build.templates import Template
from clair_apo.errors import ClairError, UsageError
from clair_apo.llm.chat import Backend
from clair_apo.llm.endpoint import DEFAULT_URL, Endpoint, EndpointClient, default_url, normal_url

LOCAL = "local:"
EMBEDDED = "local:smollm2"
# A small model asked for more than this rambles; its answers to the sample prompts need half of it.
EMBEDDED_MAX_TOKENS = 320

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Party:
    """One side of the conversation: a name, the parameters of its requests, and where it is."""

    name: str
    params: dict[str, Any]
    endpoint: Endpoint | None  # None: in this process

    @property
    def url(self) -> str | None:
        """The URL as it may be stored and shown."""
        return self.endpoint.shown if self.endpoint else None


@dataclass(frozen=True, slots=True)
class Parties:
    model: Party | None
    reviser: Party
    template: Template
    embedded: bool = field(default=False)  # no model flag at all: for trying the pipeline

    @property
    def aligned(self) -> str | None:
        """Whose answers the given ones are, as far as the flags tell."""
        return self.model.name if self.model and not self.embedded else None

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


def resolve(options: BuildOptions, without_response: int) -> Parties:
    """Settles who is asked. `without_response` is the number of rows whose answer is to be sampled.

    Raises UsageError for half a configuration, ClairError where there is no endpoint to ask.
    """
    template = templates.load(options.template) if options.template else None
    flags = (options.model, options.model_url, options.reviser, options.reviser_url)
    if not any(flags):
        party = Party(EMBEDDED, {"max_tokens": EMBEDDED_MAX_TOKENS}, None)
        return Parties(
            _with(party, _sampling(options, "model_")),
            _with(party, _sampling(options, "")),
            template or templates.load("answer-only"),
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
        )
    elif without_response:
        rows = "1 row has" if without_response == 1 else f"{without_response} rows have"
        raise UsageError(
            f"{rows} no response to revise, and no --model is named that could be asked "
            "for one; give --model NAME, or name the column of the answers with "
            "--response-column"
        )
    default = "answer-only" if reviser.name == EMBEDDED else "paper"
    return Parties(model, reviser, template or templates.load(default))


def open_backends(parties: Parties, say: Say, on_retry: Callable[[str], None]) -> dict[str, Backend]:
    """The backends by role; one where both roles are the same."""
    from clair_apo.build.clair import MODEL, REVISER

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

    backends = {REVISER: backend(parties.reviser)}
    if parties.model:
        backends[MODEL] = backend(parties.model)
    return backends


def _with(party: Party, params: dict[str, Any]) -> Party:
    return Party(party.name, {**party.params, **params}, party.endpoint)


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
) -> Party:
    if name and name.startswith(LOCAL):
        if url:
            raise UsageError(f"--{role} {name} is in this process, so --{role}-url has no meaning")
        if name == EMBEDDED:
            params = {"max_tokens": EMBEDDED_MAX_TOKENS, **params}
        unknown = sorted(params.keys() - {"temperature", "top_p", "max_tokens", "seed"})
        if unknown:
            raise UsageError(f"--{role} {name} is in this process and takes no {unknown[0]}")
        return Party(name, params, None)
    key = key_from(key_env)
    address = normal_url(url or default_url())
    if address == DEFAULT_URL and key is None:
        raise ClairError(
            f"no endpoint for --{role} {name or ''}: give --{role}-url for a server of "
            "your own, or set OPENAI_API_KEY for OpenAI's"
        )
    endpoint = Endpoint(address, key, options.timeout, options.retries, options.concurrency)
    return Party(name or _only_model(endpoint, role), params, endpoint)


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


def run(coroutine: Any) -> Any:
    """`asyncio.run`, also from where a loop runs already, such as a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
