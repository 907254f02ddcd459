"""The numbers of `stats` as a table for the terminal, one column a file.

Each figure says mean and spread and the median beside it; an arrow says which direction is the more
contrastive one, and the best file stands out. Files that do not fit beside each other go below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from clair_apo.shapes import SKIP_REASONS
from clair_apo.terminal import one_line

LABEL = 20
CELL = 27  # the least a file's column takes
INLINE = 47  # from here on the histogram stands beside the figures
GAP = 2
BLOCKS = "▁▂▃▄▅▆▇█"

_UP, _DOWN = 1, -1
_CONTRAST = (
    ("jaccard", _UP),
    ("levenshtein", _DOWN),
    ("levenshtein_ratio", _DOWN),
    ("word_edits", _DOWN),
    ("word_edit_ratio", _DOWN),
)
_LENGTH = ("chosen_chars", "rejected_chars", "length_ratio")
_ADVICE = {
    "unreadable": "the file may be cut off, or of another kind than its name says",
    "missing_column": "give every row the same columns",
    "null": "fill in the missing side or drop the rows",
    "empty_list": "fill in the missing side or drop the rows",
    "no_assistant_message": "end each side with a message of the role assistant",
    "no_text": "tool calls and images are not compared; drop the rows",
    "wrong_type": "write each side as text or as a list of messages",
    "not_unicode": "write the file again as UTF-8",
    "too_few_answers": "a pair needs two answers that have a score",
    "tie": "which one is better is not known; rate them again or drop the rows",
}

File = dict[str, Any]


def show(report: dict[str, Any], console: Console) -> None:
    """Prints what `stats` returned, for people."""
    files: list[File] = report["files"]
    beside = max(1, (console.width - LABEL) // (CELL + GAP))
    for start in range(0, len(files), beside):
        if start:
            console.print()
        _Grid(files[start : start + beside], files, console).show()
    _notes(files, console)


class _Grid:
    """The table of as many files as fit beside each other."""

    def __init__(self, files: Sequence[File], every: Sequence[File], console: Console) -> None:
        self.files, self.every, self.console = files, every, console
        space = (console.width - LABEL) // len(files) - GAP
        self.inline = space >= INLINE
        self.cell = min(space, 58) if self.inline else CELL
        self.spark = self.cell - CELL - GAP if self.inline else CELL

    def show(self) -> None:
        names = _names(self.every)
        shown = [names[id(f)] for f in self.files]
        self._row("", [Text(_fit(name, self.cell), "bold") for name in shown])
        head = f"{'mean ±std':>14}    {'median':>9}" + ("  distribution" if self.inline else "")
        self._row("", [Text(head, "dim") for _ in self.files])
        self._plain("pairs", lambda f: f"{f['pairs']:,}", "bold")

        self._title("contrast", "↑ ↓ the way to more of it; levenshtein is in characters")
        for name, direction in _CONTRAST:
            self._measure(name, direction)
        self._title("length", "characters")
        for name in _LENGTH:
            self._measure(name, 0)
        self._plain("chosen is longer", lambda f: _share(f["chosen_longer_share"]))
        self._title("where words change", "tenths of the rejected text")
        self._row("start to end", [self._positions(f) for f in self.files])

        self._title("condition", "")
        self._plain("identical", lambda f: _part(f["identical"], f["pairs"]), alarm="identical")
        self._plain("≤ 2% edited", lambda f: _part(f["near_identical"], f["pairs"]))
        skipped = any(f["skipped"] for f in self.files)
        if skipped:
            self._plain("rows skipped", lambda f: f"{f['skipped']:,}", alarm="skipped")
        self._counts("flags", "flag")
        self._counts("methods", "method")
        if any(f["tokens_in"] is not None or f["tokens_out"] is not None for f in self.files):
            self._plain("tokens in", lambda f: _count(f["tokens_in"]))
            self._plain("tokens out", lambda f: _count(f["tokens_out"]))
        if any(f["cost_usd"] is not None for f in self.files):
            self._plain("cost", _cost)

    def _row(self, label: str | Text, cells: Sequence[Text]) -> None:
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append_text(label if isinstance(label, Text) else Text(label))
        line.pad_right(max(0, LABEL - line.cell_len))
        for cell in cells:
            cell.pad_right(max(0, self.cell + GAP - cell.cell_len))
            line.append_text(cell)
        line.rstrip()
        self.console.print(line)

    def _title(self, title: str, note: str) -> None:
        line = Text.assemble((title, "bold cyan"), (f"  {note}".rstrip(), "dim"))
        line.truncate(self.console.width, overflow="ellipsis")
        self.console.print()
        self.console.print(line)

    def _measure(self, name: str, direction: int) -> None:
        arrow = {_UP: " ↑", _DOWN: " ↓", 0: ""}[direction]
        means = [f[name]["mean"] for f in self.every if f[name]]
        best = (max if direction == _UP else min)(means) if direction and len(means) > 1 else None
        cells, bars = [], []
        for file in self.files:
            measure = file[name]
            if measure is None:
                cells.append(Text(f"{'–':>17} {'–':>9}", "dim"))
                bars.append(Text())
                continue
            mean = f"{_number(name, measure['mean']):>8}"
            cell = Text.assemble((mean, "bold green" if measure["mean"] == best else "bold"))
            cell.append(f" ±{_number(name, measure['std']):<7}", "dim")
            cell.append(f" {_number(name, measure['p50']):>9}")
            bar = _bar(name, file["histograms"][name], self.spark)
            if self.inline:
                cell.append(" " * GAP)
                cell.append_text(bar)
            cells.append(cell)
            bars.append(bar)
        self._row(name.replace("_", " ") + arrow, cells)
        if not self.inline and name in ("jaccard", "levenshtein_ratio", "length_ratio"):
            self._row("", bars)

    def _positions(self, file: File) -> Text:
        shares = file["edit_position"]
        if shares is None:
            return Text("no word changes", "dim")
        wide = 2
        strip = "".join(_block(s, max(shares)) * wide for s in shares)
        cell = Text.assemble(("▕", "dim"), (strip, "magenta"), ("▏", "dim"))
        if self.inline:
            cell.append(f" {_tendency(shares)}", "dim")
        return cell

    def _plain(self, label: str, value: Callable[[File], str], style: str = "", alarm: str = "") -> None:
        cells = [Text(f"{value(f):>8}", "yellow" if alarm and f[alarm] else style) for f in self.files]
        self._row(label, cells)

    def _counts(self, key: str, label: str) -> None:
        """Named counts, the most frequent first; at most eight of a file."""
        columns = [
            [f"{n:>8,}  {one_line(name, 40)}" for name, n in file[key].items()] for file in self.files
        ]
        columns = [c if len(c) <= 8 else [*c[:7], f"{len(c) - 7:>8,}  more"] for c in columns]
        for i in range(max(map(len, columns))):
            cells = [Text(_fit(c[i], self.cell) if i < len(c) else "") for c in columns]
            self._row(label if i == 0 else "", cells)


def _notes(files: Sequence[File], console: Console) -> None:
    """Below the tables: which rows were skipped, why, and what to do about it."""
    names = _names(files)
    for file in files:
        if not file["skipped"]:
            continue
        console.print()
        rows = "row" if file["skipped"] == 1 else "rows"
        title = (f"{file['skipped']:,} {rows} skipped", "bold yellow")
        console.print(Text.assemble(title, f" in {names[id(file)]}"))
        for reason, entry in file["skipped_reasons"].items():
            first = f"row {entry['first_row']:,}: {one_line(entry['first'])}"
            line = Text.assemble(
                f"{SKIP_REASONS[reason]}; {_ADVICE[reason]}\n", (f"first in {first}", "dim")
            )
            count = f"{entry['rows']:>7,}  "
            for piece in line.wrap(console, console.width - len(count)):
                piece.rstrip()
                console.print(Text(count).append_text(piece))
                count = " " * len(count)


def _names(files: Sequence[File]) -> dict[int, str]:
    """A short name for each file: its stem, or as much of its path as tells it from the others."""
    stems = [os.path.basename(f["file"].rstrip("/")) for f in files]
    names = {}
    for file, base in zip(files, stems, strict=True):
        stem = base.split(".")[0] or base
        same = [s for s in stems if (s.split(".")[0] or s) == stem]
        names[id(file)] = one_line(stem if len(same) == 1 else file["file"])
    return names


def _fit(text: str, width: int) -> str:
    """`text` in `width` columns; what is too long loses its middle."""
    if cell_len(text) <= width:
        return text
    half = (width - 1) // 2
    tail = text[-half:]
    while cell_len(tail) > half:
        tail = tail[1:]
    return set_cell_size(text, width - 1 - cell_len(tail)) + "…" + tail


def _number(name: str, value: float) -> str:
    if name == "jaccard" or name.endswith("ratio"):
        return f"{value:.3f}"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _part(count: int, pairs: int) -> str:
    share = f"  {count / pairs:.1%}" if count else ""
    return f"{count:>8,}{share}"


def _cost(file: File) -> str:
    cost = file["cost_usd"]
    if cost is None:
        return "–"
    each = f"  ${cost / file['pairs']:.5f} a pair" if file["pairs"] else ""
    return f"${cost:,.2f}".rjust(8) + each


def _block(value: float, top: float) -> str:
    """A bar of eight heights; nothing for nothing, and something for anything else."""
    if value <= 0:
        return " "
    return BLOCKS[min(7, int(value / top * 8 - 1e-9))]


def _bar(name: str, histogram: dict[str, list[float]], width: int) -> Text:
    """The histogram between its ends; the last bin also holds all that is greater."""
    counts, edges = histogram["counts"], histogram["edges"]
    step = edges[1] - edges[0]
    regular = edges[0] + step * len(counts)
    more = "+" if edges[-1] > regular * (1 + 1e-9) else ""
    end = (f"{regular:g}" if regular < 1000 else f"{regular / 1000:g}k") + more
    room = min(len(counts), width - len(end) - 3)
    group = -(-len(counts) // max(room, 1))
    merged = [sum(counts[i : i + group]) for i in range(0, len(counts), group)]
    strip = "".join(_block(n, max(merged)) for n in merged)
    return Text.assemble(("0▕", "dim"), (strip, "blue"), (f"▏{end}", "dim"))


def _tendency(shares: Sequence[float]) -> str:
    if shares[0] >= 0.4:
        return f"{shares[0]:.0%} in the first tenth"
    if shares[-1] >= 0.4:
        return f"{shares[-1]:.0%} in the last tenth"
    first, last = sum(shares[:5]), sum(shares[5:])
    if abs(first - last) < 0.15:
        return "spread evenly"
    return f"{max(first, last):.0%} in the {'first' if first > last else 'second'} half"
