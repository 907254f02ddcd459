"""What a run says while it goes on: a live bar on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from clair_apo.llm.chat import tokens_of
from clair_apo.llm.ledger import Record
from clair_apo.terminal import safe

BAR_WIDTH = 20
# Long enough that the rate does not jump, short enough that it shows a stall.
RATE_SECONDS = 15.0


class Progress:
    """Counts what happens, and shows it on stderr unless `quiet`; a context manager."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total = total
        self.rows = 0
        self.rows_from_ledger = 0
        self.calls = 0
        self.in_flight = 0
        self.retries = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.failures: Counter[str] = Counter()
        self._quiet = quiet
        self._begun = time.monotonic()
        self._recent: list[tuple[float, int]] = [(self._begun, 0)]
        self._console = Console(stderr=True, highlight=False)
        self._phase = "asking"
        self._live = (
            Live(
                get_renderable=self._line,
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            if self._console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, message: str) -> None:
        """A line for a person, above the bar."""
        if self._quiet:
            return
        if self._live:
            self._console.print(Text(safe(message)))
        else:
            print(safe(message), file=sys.stderr, flush=True)

    def sent(self) -> None:
        self.in_flight += 1

    def returned(self) -> None:
        self.in_flight -= 1

    def retried(self, kind: str) -> None:
        self.retries += 1

    def recorded(self, record: Record) -> None:
        """A call came to its end and is on disk."""
        self.calls += 1
        tokens = tokens_of(record.raw) if record.raw else (0, 0)
        self.tokens_in += tokens[0]
        self.tokens_out += tokens[1]

    def row_done(self, failure: str | None, *, from_ledger: bool = False) -> None:
        self.rows += 1
        self.rows_from_ledger += from_ledger
        if failure:
            self.failures[failure] += 1

    def writing(self) -> None:
        """The calls are made; the tables follow."""
        self._phase = "writing"
        self.rows = 0

    def written(self, rows: int) -> None:
        self.rows = rows

    def _line(self) -> Text:
        done = self.rows / self.total if self.total else 1.0
        filled = int(BAR_WIDTH * done)
        # What may be cut off at the right of a narrow terminal comes last.
        line = Text(f"{self._phase} ", no_wrap=True, overflow="ellipsis")
        line.append("━" * filled, "green")
        line.append("━" * (BAR_WIDTH - filled), "bright_black")
        line.append(f" {self.rows:,}/{self.total:,} rows")
        if self._phase != "asking":
            return line
        rate, left = self._rate(time.monotonic())
        line.append(f" · {rate:,.1f} calls/s")
        if left is not None:
            line.append(f" · {duration(left)} left")
        for kind, count in self.failures.most_common(4):
            line.append(f" · {count:,} {kind}", "red")
        line.append(f" · {self.in_flight} in flight")
        if self.tokens_out:
            line.append(f" · {_short(self.tokens_in)} → {_short(self.tokens_out)} tokens")
        if self.retries:
            line.append(f" · {self.retries:,} retries", "yellow")
        return line

    def _rate(self, now: float) -> tuple[float, float | None]:
        """Calls a second of late, and the seconds that the rows left will take at this pace."""
        if now - self._recent[-1][0] >= 0.5:
            self._recent.append((now, self.calls))
            self._recent = [r for r in self._recent if now - r[0] <= RATE_SECONDS] or self._recent[-1:]
        begun, calls = self._recent[0]
        rate = (self.calls - calls) / (now - begun) if now - begun > 0.2 else 0.0
        asked = self.rows - self.rows_from_ledger
        elapsed = now - self._begun
        left = (self.total - self.rows) * elapsed / asked if asked >= 5 and elapsed > 2 else None
        return rate, left


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _short(number: int) -> str:
    for size, name in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{name}"
    return str(number)
