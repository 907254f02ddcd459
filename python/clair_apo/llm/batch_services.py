"""Batches at OpenAI (and who follows it) and at Anthropic: to create one, watch it, fetch its results.

Sources: https://platform.openai.com/docs/api-reference/batch and
https://platform.claude.com/docs/en/build-with-claude/batch-processing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from clair_apo import files
from clair_apo.errors import ClairError, StoppedEarly
from clair_apo.llm.batch_book import CREATING, OPEN, PREPARED, UPLOADED, Batch
from clair_apo.llm.batch_files import CALL
from clair_apo.llm.chat import read
from clair_apo.llm.endpoint import ANTHROPIC, Endpoint
from clair_apo.llm.pacing import own_wait
from clair_apo.llm.secrets import Secrets
from clair_apo.llm.wire import Refusal, refusal

# Clocks differ, so a batch may seem to be a little older than the request for it.
CLOCKS_SECONDS = 600.0
LONGEST_WAIT = 60.0
TOKEN = "clair_apo"


@dataclass(frozen=True, slots=True)
class State:
    """How a batch goes: the service's word, whether it has ended, counts of calls, when it expires (as the
    service writes it), and what is wrong with all of it."""

    status: str
    ended: bool
    done: int = 0
    failed: int = 0
    expires: str | None = None
    trouble: str | None = None


class Gone(ClairError):
    """The service does not know the batch, or has its results no more."""


class Service(ABC):
    """The batches of one endpoint; a context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._secrets = Secrets(endpoint.url, endpoint.key, dict(endpoint.headers))
        timeout = httpx.Timeout(endpoint.timeout, connect=15.0)
        self._client = httpx.Client(headers=endpoint.request_headers(), timeout=timeout)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(self, batch: Batch, save: Callable[[], None], known: set[str]) -> None:
        """Takes a batch as far as OPEN, from wherever it was left; `save` is called after each step, and
        `known` are others. Raises StoppedEarly or ClairError where it does not get there."""
        if batch.state == CREATING:
            found = self.find(batch, known)
            batch.state = OPEN if found else (UPLOADED if batch.file else PREPARED)
            batch.id = found
            save()
        if batch.state == PREPARED:
            self.upload(batch)
            batch.state = UPLOADED
            save()
        if batch.state == UPLOADED:
            batch.state = CREATING
            save()
            refused = self.create(batch)
            if refused is not None:
                batch.state = UPLOADED if batch.file else PREPARED
                save()
                words = f"batch {batch.number} was not taken: {refused.failure.message}"
                raise StoppedEarly(f"{words}\n{refused.stop}" if refused.stop else words)
            batch.state = OPEN
            save()

    def upload(self, batch: Batch) -> None:  # noqa: B027  # only some services have it
        """Brings the requests to the service, where that is a step of its own."""

    @abstractmethod
    def create(self, batch: Batch) -> Refusal | None:
        """Creates the batch, or says what it was refused with. Raises ClairError where that is not told."""

    @abstractmethod
    def find(self, batch: Batch, known: set[str]) -> str | None:
        """The service's name for a batch of which it is not known whether it was created."""

    @abstractmethod
    def state(self, batch: Batch) -> State:
        """Where an open batch stands."""

    @abstractmethod
    def fetch(self, batch: Batch) -> None:
        """Brings all results of an ended batch into its file."""

    def _post(self, path: str, content: Callable[[], dict[str, Any]]) -> dict[str, Any] | Refusal:
        """One POST of what `content` makes anew for each try. A 429 is tried again, since nothing came of
        it. Raises ClairError for an answer that does not tell what came of it."""
        tries = 0
        while True:
            tries += 1
            try:
                response = self._client.post(self._endpoint.at(path), **content())
            except httpx.ConnectError as error:
                raise ClairError(self._words(path, error)) from error
            except httpx.HTTPError as error:
                raise ClairError(
                    f"{self._words(path, error)}. Run the same command again: it looks whether this arrived"
                ) from error
            raw = self._secrets.blank(response.text)
            if response.is_success:
                body = read(raw)
                if not isinstance(body, dict):
                    raise ClairError(f"{self._endpoint.shown}{path} answered what is no JSON object")
                return body
            refused = refusal(self._endpoint.shown, response.status_code, response.headers, raw)
            if response.status_code >= 500:
                raise ClairError(f"{refused.failure.message}; run the same command again")
            if not (refused.rate_limited and refused.again) or tries > self._endpoint.retries:
                return refused
            time.sleep(min(refused.after if refused.after is not None else own_wait(tries), LONGEST_WAIT))

    def _get(
        self, path: str, into: Path | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """What stands there; with `into`, as a file instead. Tried again where the way fails."""
        url = httpx.URL(self._endpoint.at(path)).copy_merge_params(query or {})
        tries = 0
        while True:
            tries += 1
            try:
                with self._client.stream("GET", url) as response:
                    if response.is_success and into is not None:
                        with files.replacing(into) as path_, path_.open("wb") as file:
                            file.writelines(response.iter_bytes())
                        return {}
                    raw = self._secrets.blank(response.read().decode("utf-8", "replace"))
                if response.is_success:
                    body = read(raw)
                    if isinstance(body, dict):
                        return body
                    raise ClairError(f"{self._endpoint.shown}{path} answered what is no JSON object")
                refused = refusal(self._endpoint.shown, response.status_code, response.headers, raw)
                if refused.stop is not None:
                    raise refused.stopped()
                if response.status_code in (404, 410):
                    raise Gone(refused.failure.message)
                if not refused.again or tries > self._endpoint.retries:
                    raise ClairError(refused.failure.message)
                after = refused.after if refused.after is not None else own_wait(tries)
            except httpx.HTTPError as error:
                if tries > self._endpoint.retries:
                    raise ClairError(self._words(path, error)) from error
                after = own_wait(tries)
            time.sleep(min(after, LONGEST_WAIT))

    def _listed(self, path: str, batch: Batch, limit: int, cursor: str) -> Iterator[dict[str, Any]]:
        """The account's batches since `batch` was begun, newest first."""
        query: dict[str, str] = {"limit": str(limit)}
        while True:
            page = self._get(path, query=query)
            items = [item for item in page.get("data") or [] if isinstance(item, dict)]
            for item in items:
                if _seconds(item.get("created_at")) < batch.at - CLOCKS_SECONDS:
                    return
                yield item
            if not items or not page.get("has_more"):
                return
            query[cursor] = items[-1]["id"]

    def _id(self, body: Mapping[str, Any]) -> str:
        if not isinstance(body.get("id"), str):
            raise ClairError(f"{self._endpoint.shown} answered without an id: it has no batch interface")
        return str(body["id"])

    def _words(self, path: str, error: Exception) -> str:
        return f"{self._endpoint.shown}{path}: {self._secrets.blank(str(error)) or type(error).__name__}"


class OpenAIService(Service):
    """Files are uploaded, and a batch is created from each; our own name for it is in its metadata."""

    def upload(self, batch: Batch) -> None:
        with batch.requests_path.open("rb") as file:

            def content() -> dict[str, Any]:
                file.seek(0)
                return {
                    "files": {"file": (batch.requests_path.name, file, "application/jsonl")},
                    "data": {"purpose": "batch"},
                }

            body = self._post("/files", content)
        if isinstance(body, Refusal):
            raise body.stopped() if body.stop else ClairError(body.failure.message)
        batch.file = self._id(body)

    def create(self, batch: Batch) -> Refusal | None:
        content = {
            "input_file_id": batch.file,
            "endpoint": CALL,
            "completion_window": "24h",
            "metadata": {TOKEN: batch.token},
        }
        body = self._post("/batches", lambda: {"json": content})
        if isinstance(body, Refusal):
            return body
        batch.id = self._id(body)
        return None

    def find(self, batch: Batch, known: set[str]) -> str | None:
        for item in self._listed("/batches", batch, 100, "after"):
            if (item.get("metadata") or {}).get(TOKEN) == batch.token:
                return str(item["id"])
        return None

    def state(self, batch: Batch) -> State:
        body = self._get(f"/batches/{batch.id}")
        counts = body.get("request_counts") or {}
        told = (body.get("errors") or {}).get("data") or []
        words = "; ".join(str(each.get("message")) for each in told[:3] if isinstance(each, dict))
        status, expires = str(body.get("status")), body.get("expires_at")
        return State(
            status,
            status in ("completed", "failed", "expired", "cancelled"),
            int(counts.get("completed") or 0),
            int(counts.get("failed") or 0),
            datetime.fromtimestamp(expires).astimezone().isoformat() if isinstance(expires, int) else None,
            words or None,
        )

    def fetch(self, batch: Batch) -> None:
        body = self._get(f"/batches/{batch.id}")
        parts = []
        for name in ("output_file_id", "error_file_id"):
            if body.get(name):
                part = batch.results_path.with_name(f"{batch.results_path.name}.{name[:5]}")
                self._get(f"/files/{body[name]}/content", into=part)
                parts.append(part)
        with files.replacing(batch.results_path) as path, path.open("wb") as whole:
            for part in parts:
                with part.open("rb") as file:
                    last = b"\n"
                    for line in file:
                        whole.write(line)
                        last = line
                    if not last.endswith(b"\n"):
                        whole.write(b"\n")
        for part in parts:
            part.unlink()


class AnthropicService(Service):
    """A batch is created from its requests at once. The service keeps no word of ours with it, so one that
    may have been created is looked for by its time and size, and known by its results."""

    def create(self, batch: Batch) -> Refusal | None:
        size = batch.requests_path.stat().st_size  # each end of line becomes a comma, the last one an end
        begin, end = b'{"requests":[', b"]}"
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(begin) + size - 1 + len(end)),
        }

        def lines() -> Iterable[bytes]:
            yield begin
            with batch.requests_path.open("rb") as file:
                separator = b""
                for line in file:
                    yield separator + line.rstrip(b"\n")
                    separator = b","
            yield end

        body = self._post("/messages/batches", lambda: {"content": lines(), "headers": headers})
        if isinstance(body, Refusal):
            return body
        batch.id = self._id(body)
        return None

    def find(self, batch: Batch, known: set[str]) -> str | None:
        same = [
            str(item["id"])
            for item in self._listed("/messages/batches", batch, 1000, "after_id")
            if item["id"] not in known and sum((item.get("request_counts") or {}).values()) == batch.calls
        ]
        batch.found = bool(same)
        return same[-1] if same else None

    def state(self, batch: Batch) -> State:
        body = self._get(f"/messages/batches/{batch.id}")
        counts = body.get("request_counts") or {}
        status = str(body.get("processing_status"))
        failed = sum(int(counts.get(name) or 0) for name in ("errored", "canceled", "expired"))
        done = int(counts.get("succeeded") or 0)
        return State(status, status == "ended", done, failed, body.get("expires_at"))

    def fetch(self, batch: Batch) -> None:
        self._get(f"/messages/batches/{batch.id}/results", into=batch.results_path)


def service_of(endpoint: Endpoint) -> Service:
    return AnthropicService(endpoint) if endpoint.api == ANTHROPIC else OpenAIService(endpoint)


def _seconds(when: object) -> float:
    """A time as services write it, in seconds since the epoch; the latest there is for what is none."""
    if isinstance(when, int | float):
        return float(when)
    try:
        return datetime.fromisoformat(str(when)).timestamp()
    except ValueError:
        return float("inf")
