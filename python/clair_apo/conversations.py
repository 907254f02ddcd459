"""Preference rows with their prompts as messages: a whole conversation before each answer, row by row.

Every shape that `shapes` reads, over Python values; besides them, rows with one answer and a label
(`prompt`, `completion`, `label`). Rows that hold none are left out and counted by reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clair_apo import files
from clair_apo.errors import ClairError
from clair_apo.files import BadRow, Row
from clair_apo.shape_rows import (
    Layout,
    Unreadable,
    answers_of,
    label_of,
    layout_of,
    optional_value,
    prompt_messages,
    same_prompt,
    text_only,
    unpaired_layout_of,
)
from clair_apo.shapes import Skipped
from clair_apo.terminal import one_line


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages before the answers, and the answers. A row with a label has one, which stands in both
    `chosen` and `rejected`."""

    row: int
    id: str | None
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    rationale: str | None
    label: bool | None


@dataclass(slots=True)
class ConversationReader:
    """The rows of a file, a folder or a glob, in order. Each iteration reads the files anew, and fills
    `rows_read` and `skipped`; `on_skip(row, id, reason, detail)` hears of each row left out. With
    `unpaired`, rows with one answer and a label are read beside pairs.

    Raises ClairError where a file is missing or unreadable or holds no preferences: for Parquet at once,
    for text files when their rows have been seen.
    """

    spec: str | os.PathLike[str]
    unpaired: bool = False
    on_skip: Callable[[int, str | None, str, str], None] | None = None
    paths: list[Path] = field(init=False)
    rows_read: int = field(init=False, default=0)
    skipped: dict[str, Skipped] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.paths = files.expand(self.spec)
        for path in self.paths:
            names = files.names_of(path)
            if names is not None and self._layout(names, path) is None:
                raise self._nothing(path, names)

    @property
    def total_rows(self) -> int | None:
        """Rows in all files together; None where only reading would tell."""
        counts = [files.count_rows(path) for path in self.paths]
        known = [n for n in counts if n is not None]
        return sum(known) if len(known) == len(counts) else None

    def __iter__(self) -> Iterator[Conversation]:
        self.rows_read = 0
        self.skipped.clear()
        for path in self.paths:
            recognised = False
            first_names: list[str] | None = None
            names = files.names_of(path)
            layout = self._layout(names, path) if names is not None else None
            needed = layout.needed(["prompt", "rationale", "id"]) if layout is not None else None
            if layout is not None and needed is not None and layout.label is not None:
                needed.append(layout.label)
            for row in files.read_rows(path, needed):
                try:
                    if isinstance(row, BadRow):
                        raise Unreadable("unreadable", row.reason)
                    if names is None:
                        layout = self._layout(list(row), path)
                    if layout is None:
                        first_names = first_names or list(row)
                        raise Unreadable("missing_column", f"has the columns {', '.join(row) or 'none'}")
                    recognised = True
                    yield _conversation(self.rows_read, row, layout)
                except Unreadable as error:
                    self._skip(error, path, row, layout)
                self.rows_read += 1
            if first_names is not None and not recognised:
                raise self._nothing(path, first_names)

    def _layout(self, names: Sequence[str], path: Path) -> Layout | None:
        json_cells = files.suffix(path) == ".csv"
        layout = layout_of(names, json_cells)
        return unpaired_layout_of(names, json_cells) if layout is None and self.unpaired else layout

    def _skip(self, error: Unreadable, path: Path, row: Row | BadRow, layout: Layout | None) -> None:
        where = f"{path.name}: " if len(self.paths) > 1 else ""
        first = Skipped(0, self.rows_read, one_line(f"{where}{error}", 300))
        self.skipped.setdefault(error.reason, first).rows += 1
        if self.on_skip is not None:
            known = layout is not None and not isinstance(row, BadRow)
            name = optional_value("id", row, layout) if known else None  # type: ignore[arg-type]
            self.on_skip(self.rows_read, name, error.reason, str(error))

    def _nothing(self, path: Path, names: Sequence[str]) -> ClairError:
        shown = ", ".join(one_line(name, 40) for name in names[:20]) or "none"
        hint = ""
        if not self.unpaired and unpaired_layout_of(names):
            hint = " Rows with one answer and a label are for the objectives kto and apo-zero-unpaired."
        return ClairError(
            f"{one_line(str(path))}: holds no preference pairs. Its columns are: {shown}.{hint}"
        )


def _conversation(number: int, row: Row, layout: Layout) -> Conversation:
    chosen, rejected = answers_of(row, layout)
    label = None if layout.label is None else label_of(row, layout.label)
    messages = prompt_messages(row, layout)
    if not messages:
        raise Unreadable("no_prompt", "the row has no prompt")
    if not text_only(row, layout):
        raise Unreadable("not_text", "a message of the prompt holds something else than text")
    if not same_prompt(row, layout):
        raise Unreadable("prompts_differ", "the two answers stand in different conversations")
    name, rationale = (optional_value(n, row, layout) for n in ("id", "rationale"))
    return Conversation(number, name, messages, chosen, rejected, rationale, label)
