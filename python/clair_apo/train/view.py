"""What a person sees while a model trains: a header, one line that goes on, a summary at the end.

The line shows at a glance which way the likelihoods of chosen and rejected answers go against the
reference. On a terminal it is rewritten in place; elsewhere a plain line comes every so often.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from clair_apo.terminal import colour_allowed, console, duration, one_line, width
from clair_apo.train.objectives import WEIGHTED
from clair_apo.train.outcome import (
    CHOSEN,
    DOWN,
    OPEN,
    REJECTED,
    STILL,
    UP,
    changes,
    formula,
    number,
    outcome,
    promise,
    terms,
    written,
)

BAR_WIDTH = 12
SPARK_WIDTH = 8
# From this many columns on the line has room for a bar and for curves of full width.
ROOMY = 120
BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_SECONDS = 30.0
# A bar that would be gone at once is not shown, and a phase that took no time is not told of.
PATIENCE = 0.7
# Logged steps that the live line averages over: one step has few pairs.
RECENT = 10
SAMPLE_CHARS = 300

ARROWS = {UP: "↑", DOWN: "↓", OPEN: "→"}
Advance = Callable[[int, int | None], None]
Show = Callable[[Mapping[str, Any]], None]

# What the summary shows: the metric, what people call it, how it is written.
_SUMMARY = (
    (CHOSEN, "chosen, nats vs reference", "{:+.2f}"),
    (REJECTED, "rejected, nats vs reference", "{:+.2f}"),
    ("rewards/chosen", "reward of chosen", "{:+.3f}"),
    ("rewards/rejected", "reward of rejected", "{:+.3f}"),
    ("rewards/margins", "margin", "{:+.3f}"),
    ("rewards/accuracies", "accuracy", "{:.1%}"),
    ("loss", "loss", "{:.4f}"),
)
_FILES = "the model, README.md (its card), training.html (curves), metrics.jsonl, train.json"


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keeps transformers' own bars, for weights that are read or written, from standing beside ours."""
    import transformers

    logging: Any = transformers.utils.logging  # not typed
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class View:
    """Everything that `train` says, on stderr; nothing if `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = console(sys.stderr)
        self._live: Live | None = None
        self._lines: list[Callable[[], Text]] = []
        self._can_rewrite = not quiet and colour_allowed(sys.stderr)
        self._objective = ""
        self._in_training = False

    # --- before and after --------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """A line for a person; several if it holds line breaks."""
        self._print(Text("\n".join(one_line(line, 2000) for line in message.split("\n"))))

    def header(self, facts: Mapping[str, Any]) -> None:
        """What is going to happen. `facts`: what train.json holds."""
        self._objective = str(facts["objective"])
        settings = facts["settings"]
        out = ", ".join(
            f"{count:,} {one_line(reason.replace('_', ' '), 60)}"
            for reason, count in facts["dropped"].items()
        )
        rate = (
            f"{settings['optimizer']}, rate {settings['learning_rate']:g} {settings['lr_scheduler_type']}"
        )
        limits = f"at most {settings['max_length']:,} tokens a pair, seed {settings['seed']}"
        adapters = f", adapters of rank {settings['lora_rank']}" if settings.get("lora_rank") else ""
        processes = f"{facts['processes']} x " if facts.get("processes", 1) > 1 else ""
        grid = self._grid()
        grid.add_row("model", Text(one_line(str(facts["model"])), "bold") + Text(adapters))
        loss = Text.assemble((self._objective, "bold"), f"  loss = {formula(facts)}")
        if about := terms(facts):
            loss.append(f"\n{about}", "dim")
        loss.append(f"\npromises: {promise(self._objective).text}", "dim")
        grid.add_row("objective", loss)
        answers = " answers" if settings["objective"] in WEIGHTED else ""
        pairs = (
            f"{facts['pairs_used']:,}{answers} of {facts['rows']:,} rows in {one_line(str(facts['pairs']))}"
        )
        grid.add_row("pairs", Text(pairs) + Text(f"\nleft out: {out}" if out else "", "yellow"))
        epochs = facts["steps"] / max(1, -(-facts["pairs_used"] // settings["batch_size"]))
        grid.add_row(
            "steps", f"{facts['steps']:,} of {settings['batch_size']:,} pairs: {_compact(epochs)} epochs"
        )
        grid.add_row("settings", f"{rate}; {limits}; weights {facts['weights']}")
        grid.add_row("hardware", f"{processes}{one_line(str(facts['hardware']))}")
        self._print(grid)

    def samples(self, pairs: Any, tokenizer: Any, count: int = 1) -> None:
        """The first `count` pairs as the model gets them, with the tokens that are scored marked."""
        if self._quiet:
            return
        marks = ("", "") if self._can_rewrite else ("⟦", "⟧")
        style = "on grey23" if self._can_rewrite else ""

        def text(tokens: Any) -> str:
            decoded = str(tokenizer.decode(tokens.tolist(), skip_special_tokens=False))
            if len(decoded) > SAMPLE_CHARS:
                half = SAMPLE_CHARS // 2
                decoded = f"{decoded[:half]} … {decoded[-half:]}"
            return one_line(decoded, 4 * SAMPLE_CHARS)

        for place in range(min(count, len(pairs))):
            pair = pairs[place]
            grid = self._grid()
            grid.add_row("prompt", Text(text(pair.prompt), "dim"))
            for name, tokens in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                if len(tokens):
                    scored = f"{marks[0]}{text(tokens)}{marks[1]}"
                    grid.add_row(name, Text.assemble((scored, style), (f"  {len(tokens):,} tokens", "dim")))
            self._print(Text("\na pair as the model gets it, its scored tokens marked", "dim"))
            self._print(grid)
        self._print(Text())

    def closing(self, facts: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> None:
        """What the run did: `facts` of train.json, `metrics` of metrics.jsonl."""
        if self._quiet:
            return
        objective = str(facts["objective"])
        found = outcome(metrics, objective)
        rows = {change.name: change for change in changes(metrics, [name for name, *_ in _SUMMARY])}
        held = any(change.held_out is not None for change in rows.values())
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
        table.add_column("")
        last = f"last {found.last_steps:,}" if found.last_steps > 1 else "last"
        for column in ("first", last, *(["held out"] if held else [])):
            table.add_column(column, justify="right")
        for name, label, form in _SUMMARY:
            if name in rows:
                change = rows[name]
                values = [change.first, change.last, *([change.held_out] if held else [])]
                cells = ["–" if value is None else written(form, value) for value in values]
                title = Text(label)
                if name in (CHOSEN, REJECTED):
                    way = found.chosen_way if name == CHOSEN else found.rejected_way
                    title.append(f" {ARROWS[way]}", self._colour(name, way, objective))
                table.add_row(title, *cells)
        self._print(Text())
        self._print(table)
        sign, style = {True: ("✓", "green"), False: ("✗", "yellow"), None: ("·", "cyan")}[found.kept]
        where = "on held-out pairs, " if found.held_out else ""
        self._print(Text.assemble((f"{sign} ", style), f"{where}{found.text}"))
        folder = one_line(str(facts["settings"]["output_dir"]))
        self._print(Text.assemble(("written to ", "dim"), folder, (f": {_FILES}", "dim")))

    # --- meanwhile ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def bar(self, label: str, unit: str = "") -> Iterator[Advance]:
        """A phase of known length, also within `training`: gives a function that takes how many are done
        and how many there are (None: not known)."""
        begun = said = time.monotonic()
        state: list[tuple[int, int | None]] = [(0, None)]

        def line() -> Text:
            done, total = state[0]
            text = Text(f"{label} ", no_wrap=True, overflow="ellipsis")
            if total:
                text.append_text(_bar(done / total, BAR_WIDTH)).append(" ")
            return text.append(_of(done, total, unit))

        def advance(done: int, total: int | None) -> None:
            nonlocal said
            state[0] = (done, total)
            now = time.monotonic()
            if self._can_rewrite:
                if line not in self._lines and now - begun > PATIENCE:
                    self._push(line)
            elif now - said > PLAIN_SECONDS:
                said = now
                self.say(f"{label} {_of(done, total, unit)}")

        try:
            yield advance
        finally:
            self._pop(line)
        seconds = time.monotonic() - begun
        if seconds > PATIENCE and not self._in_training:
            self.say(f"{label} {_of(*state[0], unit)} in {duration(seconds)}")

    @contextlib.contextmanager
    def training(self, steps: int, first: int = 0) -> Iterator[Show]:
        """The steps after `first` to `steps`: gives a function that takes each record of metrics.jsonl."""
        curve = _Curve(steps, first, self._objective)
        said = float("-inf")
        told = True

        def show(record: Mapping[str, Any]) -> None:
            nonlocal said, told
            if any(name.startswith("eval_") for name in record):
                self._print(curve.evaluated(record))
                return
            curve.add(record)
            told = False
            now = time.monotonic()
            if not self._can_rewrite and now - said > PLAIN_SECONDS:
                said, told = now, True
                self.say(curve.plain())

        if self._can_rewrite:
            self._push(curve.line)
        self._in_training = True
        try:
            yield show
        finally:
            self._in_training = False
            self._pop(curve.line)
            if not told:
                self.say(curve.plain())

    # --- how ---------------------------------------------------------------------------------------

    def _print(self, what: Any) -> None:
        if self._quiet:
            return
        # Lines are left to the terminal, or to whoever reads the log, to wrap.
        if self._can_rewrite:
            self._console.print(what, soft_wrap=isinstance(what, Text))
            return
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=isinstance(what, Text))
        lines = (line.rstrip() for line in captured.get().splitlines())
        print("\n".join(lines), file=self._console.file, flush=True)

    def _push(self, line: Callable[[], Text]) -> None:
        self._lines.append(line)
        if self._live is None:
            self._live = Live(
                get_renderable=lambda: self._lines[-1]() if self._lines else Text(),
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()

    def _pop(self, line: Callable[[], Text]) -> None:
        if line in self._lines:
            if len(self._lines) == 1 and self._live is not None:
                self._live.stop()
                self._live = None
            self._lines.remove(line)

    @staticmethod
    def _grid() -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        return grid

    @staticmethod
    def _colour(name: str, way: int, objective: str) -> str:
        wanted = promise(objective)
        want = wanted.chosen if name == CHOSEN else wanted.rejected
        if way == OPEN:
            return "dim"
        return "cyan" if want == OPEN else "green" if way == want else "red"


class _Curve:
    """What the line that goes on shows of the steps so far."""

    def __init__(self, steps: int, first: int, objective: str) -> None:
        self._steps, self._first, self._objective = steps, first, objective
        self._done = first
        self._begun = time.monotonic()
        self._sparks = {CHOSEN: _Spark(), REJECTED: _Spark()}
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT)

    def add(self, record: Mapping[str, Any]) -> None:
        self._done = int(record["step"])
        self._recent.append(record)
        for name, spark in self._sparks.items():
            spark.add(number(record, name))

    def line(self) -> Text:
        room = width() - 1
        head = Text("step ", no_wrap=True, overflow="ellipsis")
        if room >= ROOMY:
            head.append_text(_bar(self._done / max(1, self._steps), BAR_WIDTH)).append(" ")
        head.append(f"{self._done:,}/{self._steps:,}")
        # In the order in which they stand; the number says which stays longest where there is no room.
        parts = [
            (2, self._left()),
            (0, self._side("chosen", CHOSEN)),
            (1, self._side("rejected", REJECTED)),
            (5, self._mean("margin", "rewards/margins", "{:+.2f}")),
            (4, self._mean("accuracy", "rewards/accuracies", "{:.0%}")),
            (3, self._mean("loss", "loss", "{:.3f}")),
            (6, self._rate("tokens_per_second", "tok/s")),
            (7, self._rate("pairs_per_second", "pairs/s")),
        ]
        kept: list[int] = []
        used = head.cell_len
        for place in sorted(range(len(parts)), key=lambda i: parts[i][0]):
            size = parts[place][1].cell_len
            if size and used + size + 3 <= room:
                kept.append(place)
                used += size + 3
        for place in sorted(kept):
            head.append(" · ", "dim").append_text(parts[place][1])
        return head

    def plain(self) -> str:
        """The last record in a line without anything to look at."""
        record = self._recent[-1] if self._recent else {}
        found = [f"step {self._done:,}/{self._steps:,}", *_values(record, "")]
        for name, unit in (("tokens_per_second", "tokens/s"), ("pairs_per_second", "pairs/s")):
            if (rate := number(record, name)) > 0:
                found.append(f"{_compact(rate)} {unit}")
        if left := self._left().plain:
            found.append(left)
        return ", ".join(found)

    def evaluated(self, record: Mapping[str, Any]) -> Text:
        text = Text(f"held-out pairs after step {record['step']:,}: ", "bold")
        return text.append(", ".join(_values(record, "eval_")), "not bold")

    def _side(self, label: str, name: str) -> Text:
        value = self._average(name)
        if math.isnan(value):
            return Text()
        way = OPEN if abs(value) <= STILL else UP if value > 0 else DOWN
        room = SPARK_WIDTH if width() > ROOMY else SPARK_WIDTH // 2
        colour = View._colour(name, way, self._objective)
        text = Text(f"{label} ").append(self._sparks[name].blocks(room), colour)
        return text.append(f" {ARROWS[way]} {_signed(value)}", colour)

    def _mean(self, label: str, name: str, form: str) -> Text:
        value = self._average(name)
        return Text() if math.isnan(value) else Text(f"{label} {written(form, value)}")

    def _rate(self, name: str, unit: str) -> Text:
        value = self._average(name)
        return Text() if math.isnan(value) else Text(f"{_compact(value)} {unit}")

    def _left(self) -> Text:
        run = self._done - self._first
        if run < 1 or self._done >= self._steps:
            return Text()
        seconds = (time.monotonic() - self._begun) / run * (self._steps - self._done)
        # No finer than it is known, so that the line keeps its length.
        return Text(f"{duration(seconds) if seconds < 60 else _rough(seconds)} left")

    def _average(self, name: str) -> float:
        values = [v for record in self._recent if math.isfinite(v := number(record, name))]
        return sum(values) / len(values) if values else math.nan


class _Spark:
    """A curve in a few blocks, whatever its length: neighbours are merged as it grows."""

    LIMIT = 16 * SPARK_WIDTH

    def __init__(self) -> None:
        self._means: list[float] = []
        self._size = 1  # values in one mean
        self._pending: list[float] = []

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        self._pending.append(value)
        if len(self._pending) == self._size:
            self._means.append(sum(self._pending) / self._size)
            self._pending = []
        if len(self._means) == self.LIMIT:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(a + b) / 2 for a, b in pairs]
            self._size *= 2

    def blocks(self, room: int) -> str:
        """At most `room` blocks between the least and the greatest mean, 0 among them."""
        count = min(room, len(self._means))
        if not count:
            return ""
        ends = [len(self._means) * k // count for k in range(count + 1)]
        means = [sum(self._means[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]
        low, high = min(0.0, *means), max(0.0, *means)
        scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
        return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def _values(record: Mapping[str, Any], prefix: str) -> list[str]:
    """The metrics of a record that a plain line names."""
    named = (
        ("loss", "loss", "{:.4f}"),
        ("chosen", CHOSEN, "{:+.2f}"),
        ("rejected", REJECTED, "{:+.2f}"),
        ("margin", "rewards/margins", "{:+.3f}"),
        ("accuracy", "rewards/accuracies", "{:.0%}"),
    )
    found = [(label, number(record, prefix + name), form) for label, name, form in named]
    return [f"{label} {written(form, v)}" for label, v, form in found if math.isfinite(v)]


def _bar(share: float, room: int) -> Text:
    filled = int(room * min(1.0, share))
    return Text.assemble(("━" * filled, "green"), ("━" * (room - filled), "bright_black"))


def _of(done: int, total: int | None, unit: str) -> str:
    return (f"{done:,}" + (f"/{total:,}" if total else "") + f" {unit}").rstrip()


def _signed(value: float) -> str:
    return (
        f"{value:+,.2f}" if abs(value) < 10 else f"{value:+,.1f}" if abs(value) < 100 else f"{value:+,.0f}"
    )


def _compact(value: float) -> str:
    """A rate or a count with three digits that matter."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * size:
            return f"{value / size:,.3g}{name}" if value < 1000 * size else f"{value / size:,.0f}{name}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rough(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
