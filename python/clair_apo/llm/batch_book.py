"""What was handed to batches and is not back: `batches.json` in the run folder.

It is written before and after each step towards a service, so whatever is interrupted, the next start knows
what may have been paid for already.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clair_apo import files
from clair_apo.errors import ClairError
from clair_apo.llm.batch_files import FILES

# The steps of a batch. Of one that is CREATING it is not known whether the service has it.
PREPARED, UPLOADED, CREATING, OPEN, CLOSED = "prepared", "uploaded", "creating", "open", "closed"


@dataclass(slots=True)
class Batch:
    """One batch. `url` is the server's as it may be stored; `token` is what the service is told to keep
    with it, where it can; `at` is when it was begun, in seconds since the epoch; `reserved` is the most it
    may cost in USD. `id`, `file` (uploaded) and `status` are the service's; `left` calls came to nothing
    and are free to be asked again."""

    number: int
    role: str
    stage: str
    model: str
    service: str
    url: str
    requests: str
    calls: int
    reserved: float
    state: str = PREPARED
    at: float = field(default_factory=time.time)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    id: str | None = None
    found: bool = False  # by its time and size alone: its results show whether it is this one
    file: str | None = None
    status: str | None = None
    replies: int = 0
    failures: int = 0
    left: int = 0

    @property
    def is_open(self) -> bool:
        return self.state != CLOSED

    @property
    def requests_path(self) -> Path:
        return Path(self.requests)

    @property
    def results_path(self) -> Path:
        name = self.requests_path.name.removesuffix("requests.jsonl")
        return self.requests_path.with_name(f"{name}results.jsonl")


class Book:
    """The batches of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "batches.json"
        self.folder = folder / "batches"  # of the requests and results of services
        self.batches: list[Batch] = []
        self.not_ours: list[str] = []  # batches of the account that were taken for one of these
        if not self.path.exists():
            return
        try:
            content = json.loads(self.path.read_text("utf-8"))
            self.batches = [Batch(**one) for one in content["batches"]]
            self.not_ours = list(content["not_ours"])
            for batch in self.batches:
                if batch.service != FILES:  # the run folder may have been moved since
                    batch.requests = str((self.folder / batch.requests_path.name).absolute())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClairError(
                f"{self.path} cannot be read ({error}). It says which batches are paid for; mend it, or "
                "remove it if none is open"
            ) from error

    def clear(self) -> None:
        """Forgets all batches."""
        self.batches.clear()
        self.path.unlink(missing_ok=True)

    def save(self) -> None:
        content: dict[str, Any] = {
            "batches": [asdict(batch) for batch in self.batches],
            "not_ours": self.not_ours,
        }
        with files.replacing(self.path) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    def open(self) -> Iterator[Batch]:
        """Those that are not back, or not gone out."""
        return (batch for batch in self.batches if batch.is_open)

    @property
    def open_calls(self) -> int:
        return sum(batch.calls for batch in self.open())

    @property
    def reserved(self) -> float:
        """USD that the open ones may cost at most."""
        return sum(batch.reserved for batch in self.open())

    @property
    def next_number(self) -> int:
        return max((batch.number for batch in self.batches), default=0) + 1

    @property
    def ids(self) -> set[str]:
        """Batches of the service that are known, ours and others."""
        return {*self.not_ours, *(batch.id for batch in self.batches if batch.id)}
