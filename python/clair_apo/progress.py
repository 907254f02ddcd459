"""What a command shows while it reads, and how it prints its JSON.

Importing this is cheap, for `clair-apo --help`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any


def print_json(document: Mapping[str, Any]) -> None:
    """Prints one document on stdout."""
    # ASCII only: no text of a model reaches a terminal as it is.
    print(json.dumps(document, allow_nan=False))


class Bar:
    """A bar on stderr for runs that take longer than a moment; none where stderr is no terminal."""

    PATIENCE = 0.7

    def __init__(self, quiet: bool) -> None:
        from clair_apo.terminal import colour_allowed

        self._wanted = not quiet and colour_allowed(sys.stderr)
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bar:
        import time

        self._clock = time.monotonic
        self._start = self._clock()
        return self

    def update(self, file: str, rows: int, total: int | None) -> None:
        """Shows that `rows` of `total` rows of `file` are done."""
        if not self._wanted or self._clock() - self._start < self.PATIENCE:
            return
        if self._progress is None:
            self._open()
        if file not in self._tasks:
            from clair_apo.terminal import one_line

            self._tasks[file] = self._progress.add_task(one_line(file, 40), total=total)
        self._progress.update(self._tasks[file], completed=rows, total=total)

    def _open(self) -> None:
        from rich import progress

        from clair_apo.terminal import console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,} rows"),
            progress.TimeRemainingColumn(),
            console=console(sys.stderr),
            transient=True,
        )
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
