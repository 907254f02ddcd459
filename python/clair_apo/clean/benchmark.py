"""The texts of benchmarks: every item of any file, whatever its columns are called."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clair_apo import files
from clair_apo.errors import ClairError
from clair_apo.files import BadRow
from clair_apo.terminal import one_line

# Keys of messages and the like whose text says nothing of an item.
_NO_TEXT = ("role", "from", "type", "id")


@dataclass(slots=True)
class Benchmark:
    """One file: `items` counts its rows; `texts` those of their columns that hold words."""

    file: str
    items: int = 0
    unreadable: int = 0
    texts: int = 0
    too_short: int = 0


@dataclass(slots=True)
class Benchmarks:
    """All texts of all benchmarks. Text i stands in `files[of_file[i]]`, in row `rows[i]` (from 0), in the
    column `columns[i]` (None for a line of a .txt file)."""

    files: list[Benchmark] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    of_file: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    columns: list[str | None] = field(default_factory=list)

    def add(self, spec: str | os.PathLike[str], columns: Sequence[str] | None) -> None:
        """Reads the texts of a file, a folder or a glob; of `columns` alone, if they are given.

        Raises ClairError where it cannot be read, lacks one of the columns or holds no text.
        """
        whole_text = Path(spec).suffix.lower() == ".txt" and Path(spec).is_file()
        for path in [Path(spec)] if whole_text else files.expand(spec):
            self._add_file(path, columns)

    def _add_file(self, path: Path, columns: Sequence[str] | None) -> None:
        found = Benchmark(str(path))
        number = len(self.files)
        self.files.append(found)
        names: dict[str, None] = {}
        for item in _items(path):
            row = found.items
            found.items += 1
            if isinstance(item, BadRow):
                found.unreadable += 1
                continue
            names.update(dict.fromkeys(item))
            for name, value in item.items():
                if columns is not None and name and name not in columns:
                    continue
                text = files.utf8("\n".join(_texts(value)))
                if text.strip():
                    found.texts += 1
                    self.texts.append(text)
                    self.of_file.append(number)
                    self.rows.append(row)
                    self.columns.append(name or None)
        shown = ", ".join(one_line(name, 40) for name in list(names)[:20]) or "none"
        missing = [] if "" in names or columns is None else [c for c in columns if c not in names]
        if missing:
            raise ClairError(
                f"{one_line(str(path))}: no column {one_line(missing[0], 40)!r}; it has {shown}"
            )
        if not found.texts:
            raise ClairError(f"{one_line(str(path))}: holds no text. Its columns are: {shown}.")


def _items(path: Path) -> Iterator[dict[str, Any] | BadRow]:
    if path.suffix.lower() != ".txt":
        yield from files.read_rows(path)
        return
    with files.open_bytes(path) as file:
        for line in file:
            yield {"": line.decode("utf-8-sig", "replace")}


def _texts(value: Any) -> Iterator[str]:
    """The texts within a value, in order: of messages, what they say."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in _NO_TEXT:
                yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
