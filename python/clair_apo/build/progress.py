"""What a run says while it goes on: a live bar on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from clair_apo.llm.asking import Party
from clair_apo.llm.chat import Backend
from clair_apo.llm.ledger import Record
from clair_apo.llm.spending import cost_of_call
from clair_apo.terminal import colour_allowed, duration, safe, width

BAR_WIDTH = 20
# Long enough that the rate does not jump, short enough that it shows a stall.
RATE_SECONDS = 15.0
PAUSE_LINES_SECONDS = 30.0


class Progress:
    """Counts what happens, and shows it on stderr unless `quiet`; a context manager."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total = total
        self.rows = 0
        self.rows_from_ledger = 0
        self.calls = 0
        self.calls_from_ledger = 0
        self.retries = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.failures: Counter[str] = Counter()
        self._quiet = quiet
        self._backends: list[Backend] = []
        self._parties: Mapping[str, Party] = {}
        self._cost: float | None = None
        self._cost_before: float | None = None
        self._said_pause = float("-inf")
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
            if colour_allowed(sys.stderr) and not quiet
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

    def watch(self, backends: Iterable[Backend], parties: Mapping[str, Party], spent: float | None) -> None:
        """Shows how it goes with `backends` from now on. `spent`: USD of earlier calls, if known."""
        self._backends = list(backends)
        self._parties = parties
        self._cost = self._cost_before = spent

    def retried(self, kind: str) -> None:
        self.retries += 1
        if kind == "rate_limited":
            self._say_pause()

    def recorded(self, record: Record) -> None:
        """A call came to its end and is on disk."""
        self.calls += 1
        self.tokens_in += record.tokens_in or 0
        self.tokens_out += record.tokens_out or 0
        party = self._parties.get(record.role)
        if self._cost is not None and record.tokens_in is not None:
            price = party.price if party is not None else None
            self._cost = None if price is None else self._cost + cost_of_call(record, price)

    def prompt_cut(self, role: str, ours: int, theirs: int) -> None:
        """A server's own count shows that it cut a prompt."""
        name = self._parties[role].name
        self.say(
            f"WARNING: {name} saw only {theirs:,} tokens of a prompt of about {ours:,}: the server cuts "
            "long prompts without a word (Ollama: raise OLLAMA_CONTEXT_LENGTH). Such pairs get the flag "
            "prompt_cut."
        )

    def row_done(self, failures: Sequence[str], *, asked: bool) -> None:
        """A row is over; `failures` are the kinds with which methods failed for it."""
        self.rows += 1
        self.rows_from_ledger += not asked
        self.failures.update(failures)

    def writing(self) -> None:
        """The calls are made; the tables follow."""
        self._phase = "writing"
        self.rows = 0

    def written(self, rows: int) -> None:
        self.rows = rows

    def _line(self) -> Text:
        done = self.rows / self.total if self.total else 1.0
        room = BAR_WIDTH if width() >= 100 else BAR_WIDTH // 3
        filled = int(room * done)
        # What may be cut off at the right of a narrow terminal comes last.
        line = Text(f"{self._phase} ", no_wrap=True, overflow="ellipsis")
        line.append("━" * filled, "green")
        line.append("━" * (room - filled), "bright_black")
        line.append(f" {self.rows:,}/{self.total:,} rows")
        if self._phase != "asking":
            return line
        rate, left = self._rate(time.monotonic())
        states = [backend.state() for backend in self._backends]
        if left is not None:
            line.append(f" · {duration(left)} left")
        if self._cost:
            line.append(f" · {usd(self._cost)}")
            if (whole := self._projected()) is not None:
                line.append(f" of ~{usd(whole)}")
        paused = max((state.paused for state in states), default=0.0)
        if paused > 0.1:
            line.append(f" · server asks to wait {paused:,.1f} s", "yellow")
        for kind, count in self.failures.most_common(4):
            line.append(f" · {count:,} {kind}", "red")
        allowed = sum(state.allowed for state in states)
        line.append(f" · {sum(state.in_flight for state in states)} of {allowed} in flight")
        line.append(f" · {rate:,.1f} calls/s")
        if self.tokens_out:
            line.append(f" · {_short(self.tokens_in)} → {_short(self.tokens_out)} tokens")
        if self.retries:
            line.append(f" · {self.retries:,} retries", "yellow")
        return line

    def _projected(self) -> float | None:
        """USD for all rows, if those to come cost what those of this start did."""
        asked = self.rows - self.rows_from_ledger
        if self._cost is None or self._cost_before is None or asked < 5:
            return None
        return self._cost + (self._cost - self._cost_before) / asked * (self.total - self.rows)

    def _say_pause(self) -> None:
        """Where there is no bar: a line, now and then."""
        now = time.monotonic()
        if self._live is None and now - self._said_pause > PAUSE_LINES_SECONDS:
            self._said_pause = now
            paused = max((backend.state().paused for backend in self._backends), default=0.0)
            self.say(f"the server asks for fewer calls; all wait {paused:,.1f} s and go on")

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


def usd(amount: float) -> str:
    """An amount as people write it, with more places where it is small."""
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.4f}"


def _short(number: int) -> str:
    for size, name in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{name}"
    return str(number)
