"""`clair-apo decontaminate`: rows that hold the items of a benchmark, found by n-grams of words.

The table is read twice. The first pass counts in how many rows each n-gram of the benchmarks stands, which
tells boilerplate from content; the second finds the matches of the rows that had any n-gram at all.
Memory holds the benchmarks, the index of their n-grams, one byte a row, and a few batches.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clair_apo import _core, files
from clair_apo.clean.benchmark import Benchmarks
from clair_apo.clean.pairs import PairsByRow
from clair_apo.clean.prompts import Prompts
from clair_apo.clean.rows import Progress, RowBatch, RowReader, RowWriter, Spec, check_paths
from clair_apo.clean.summary import from_to, reasons, skipped_lines
from clair_apo.clean.summary import show as show_counts
from clair_apo.errors import ClairError, UsageError
from clair_apo.shape_rows import layout_of
from clair_apo.shapes import Skipped
from clair_apo.tables import TableWriter
from clair_apo.terminal import console, one_line

SIDES = ("prompt", "chosen", "rejected")
# An n-gram in more items than this is boilerplate; in as many rows it never is, whatever the share.
COMMON = 10
# Characters around the matching words, and the most of these, in a match's context.
AROUND = 60
LONGEST = 400
SHOWN = 5

MATCHES = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("side", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.int64(), nullable=False),
        pa.field("column", pa.string()),
        pa.field("shared", pa.uint32(), nullable=False),
        pa.field("total", pa.uint32(), nullable=False),
        pa.field("share", pa.float64(), nullable=False),
        pa.field("words", pa.string(), nullable=False),
        pa.field("context", pa.string(), nullable=False),
        pa.field("item_text", pa.string(), nullable=False),
    ]
)


def decontaminate(
    file: Spec,
    against: Spec | Sequence[Spec],
    output: Spec,
    *,
    ngram: int = 8,
    share: float = 0.5,
    on: str = "all",
    against_column: Sequence[str] | None = None,
    boilerplate: float = 0.01,
    matches: Spec | None = None,
    prompt_column: str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Copies the rows of `file` that hold no item of the benchmarks `against` into `output`.

    A row holds an item if one of its texts (`on`: prompt, chosen, rejected or all) has at least `share` of
    the different n-grams of one text of the item, and at least one. Boilerplate counts on neither side:
    n-grams in more than 10 items, or in more than 10 rows and more than the share `boilerplate` of all.
    Texts of fewer than `ngram` words match an equal one, and none where they have fewer than half.
    `matches` names a file for every match, with the columns of `MATCHES`: `shared` of `total` n-grams, the
    longest stretch of `words`, and the `context` that it stands in.

    Returns: what `clair-apo decontaminate --json` prints. `rows_in` = `rows_out` + `contaminated` +
    `skipped` (rows that cannot be read or have no such text: nobody could say that they are clean).

    Raises ClairError where a file cannot be read or has no such columns, UsageError for a wrong value.
    """
    if ngram < 1 or on not in ("all", *SIDES) or not (0 <= share <= 1 and 0 <= boilerplate <= 1):
        raise UsageError(
            "--ngram is at least 1; --on is all, prompt, chosen or rejected; shares are 0 to 1"
        )
    check_paths(file, output, *([matches] if matches is not None else []))
    reader = RowReader(file)
    sides = _Sides(file, reader, on, prompt_column)
    benchmarks = Benchmarks()
    specs = [against] if isinstance(against, str | os.PathLike) else list(against)
    for spec in specs:
        benchmarks.add(spec, against_column)
    written = [Path(output), *([Path(matches)] if matches is not None else [])]
    for bench in benchmarks.files:
        if any(path.exists() and path.samefile(bench.file) for path in written):
            raise UsageError(f"{one_line(bench.file)}: is also a benchmark; name another file to write to")
    index = _Index(benchmarks, ngram)

    suspects = bytearray()
    for rows, texts in sides.read(on_progress, f"{file} (counting)"):
        suspects.extend(bytes(rows.first_row + rows.num_rows - len(suspects)))
        any_shared = pa.array(index.core.count(list(texts.values()))).to_pylist()
        suspects[rows.first_row :] = bytes(any_shared)
    most = max(COMMON, int(boilerplate * reader.rows_read))
    aside = index.core.set_aside(COMMON, most)

    found = _Found(benchmarks, index, share)
    with ExitStack() as stack:
        writer = stack.enter_context(RowWriter(Path(output), reader))
        table = stack.enter_context(TableWriter(Path(matches), MATCHES)) if matches is not None else None
        for rows, texts in sides.read(on_progress, str(file)):
            end = rows.first_row + rows.num_rows
            suspect = pa.array(map(bool, suspects[rows.first_row : end]), pa.bool_())
            hit = found.in_batch(rows, texts, sides.ids, suspect, table)
            writer.write(rows, pc.and_not(sides.readable, hit))
        writer.finish()
        if table is not None:
            table.finish()
    skipped = sides.skipped()
    return {
        "file": str(file),
        "output": str(output),
        "against": [str(spec) for spec in specs],
        "ngram": ngram,
        "share": share,
        "on": list(sides.names),
        "rows_in": reader.rows_read,
        "rows_out": writer.rows,
        "contaminated": found.rows,
        "matches": found.matches,
        "benchmarks": found.by_benchmark(),
        "boilerplate": {
            "ngrams": aside,
            "of": index.core.grams,
            "rows_beyond": most,
            "items_beyond": COMMON,
            "phrases": pa.table(index.core.phrases(10)).to_pylist(),
        },
        "first_matches": found.first,
        "skipped": sum(s.rows for s in skipped.values()),
        "skipped_reasons": reasons(skipped),
    }


class _Sides:
    """The texts to look at, batch by batch, beside the rows. After each batch, `ids` has the rows' ids (or
    None), and `readable` says which rows have any text to look at."""

    def __init__(self, file: Spec, reader: RowReader, on: str, prompt_column: str | None) -> None:
        self._file, self._reader = file, reader
        names = reader.schema.names
        shown = one_line(str(file))
        pairs = layout_of(names) is not None
        if on in ("chosen", "rejected") and not pairs:
            raise ClairError(f"{shown}: holds no preference pairs, so --on {on} finds nothing there")
        self.names = SIDES if on == "all" else (on,)
        if not pairs:
            self.names = ("prompt",)
        # Of pairs, `shapes` finds all texts; a prompt alone is there in any table.
        self._prompts = None
        if self.names == ("prompt",) or prompt_column is not None:
            self._prompts = Prompts(shown, names, prompt_column)
        self._pairs = self.names != ("prompt",)
        self._id = next((n for n in ("id", "prompt_id") if n in names), None)
        self._without = Skipped(0, 0, "the row has no prompt")
        self._reader_of_pairs: PairsByRow | None = None
        self.readable: Any = None
        self.ids: Any = None

    def read(self, on_progress: Progress | None, name: str) -> Iterator[tuple[RowBatch, dict[str, Any]]]:
        self._without = Skipped(0, 0, "the row has no prompt")
        self._reader_of_pairs = PairsByRow(self._file, ("prompt",)) if self._pairs else None
        for rows in self._reader:
            texts: dict[str, Any] = {}
            if self._reader_of_pairs is not None:
                texts = self._reader_of_pairs.take(rows.first_row, rows.num_rows)
                self.readable = texts["chosen"].is_valid()
            if self._prompts is not None:
                texts["prompt"] = pa.array(self._prompts.of(rows), pa.large_string())
            if self._reader_of_pairs is None:
                self.readable = texts["prompt"].is_valid()
                missing = pc.index(self.readable, pa.scalar(False)).as_py()
                if missing >= 0 and not self._without.rows:
                    self._without.first_row = rows.first_row + missing
                self._without.rows += texts["prompt"].null_count
            self.ids = rows.batch.column(self._id) if self._id is not None else None
            yield rows, {side: texts[side] for side in self.names}
            if on_progress is not None:
                on_progress(name, self._reader.rows_read, self._reader.total_rows)

    def skipped(self) -> dict[str, Skipped]:
        if self._reader_of_pairs is not None:
            return self._reader_of_pairs.skipped()
        found = {"unreadable": self._reader.unreadable} if self._reader.unreadable else {}
        return {**found, "no_prompt": self._without} if self._without.rows else found


class _Index:
    """The n-grams of the benchmarks' texts, and where each different text stands."""

    def __init__(self, benchmarks: Benchmarks, n: int) -> None:
        self.core = _core.NgramIndex(pa.array(benchmarks.texts, pa.large_string()), n)
        lengths = pa.array(self.core.lengths()).to_pylist()
        # The text in which each item stands first, and the files in which it stands.
        self.first: list[int] = [-1] * len(lengths)
        self.files: list[tuple[int, ...]] = [()] * len(lengths)
        for text, item in enumerate(pa.array(self.core.items()).to_pylist()):
            if item is None:
                continue
            of_file = benchmarks.of_file[text]
            if self.first[item] < 0:
                self.first[item] = text
            if of_file not in self.files[item]:
                self.files[item] += (of_file,)
            if lengths[item] < -(-n // 2):
                benchmarks.files[of_file].too_short += 1


class _Found:
    """Collects matches: what of them is told, and the rest for the file."""

    def __init__(self, benchmarks: Benchmarks, index: _Index, share: float) -> None:
        self.rows = self.matches = 0
        self.first: list[dict[str, Any]] = []
        self._benchmarks, self._index, self._share = benchmarks, index, share
        self._rows_of: Counter[int] = Counter()
        self._items_of: dict[int, set[int]] = {}

    def in_batch(
        self, rows: RowBatch, texts: dict[str, Any], ids: Any, suspect: Any, table: TableWriter | None
    ) -> pa.BooleanArray:
        """Which rows of a batch hold an item. Only the `suspect` ones are looked at."""
        hit = [False] * rows.num_rows
        hit_files: set[tuple[int, int]] = set()
        if not pc.any(suspect).as_py():
            return pa.array(hit, pa.bool_())
        told: list[dict[str, Any]] = []
        for side, column in texts.items():
            asked = pc.if_else(suspect, column, pa.scalar(None, column.type))
            batch = pa.table(self._index.core.matches(asked, self._share))
            for match in batch.to_pylist():
                at = match["row"]
                hit[at] = True
                for number in self._index.files[match["item"]]:
                    hit_files.add((at, number))
                    self._items_of.setdefault(number, set()).add(match["item"])
                self.matches += 1
                if table is not None or len(self.first) < SHOWN:
                    row_id = None if ids is None else ids[at].as_py()
                    line = self._line(match, side, column[at].as_py())
                    line["row"] = rows.first_row + at
                    line["id"] = None if row_id is None else str(row_id)
                    told.append(line)
                    if len(self.first) < SHOWN:
                        self.first.append(line)
        if table is not None:
            table.write(sorted(told, key=lambda line: line["row"]))
        self.rows += sum(hit)
        self._rows_of.update(number for _, number in hit_files)
        return pa.array(hit, pa.bool_())

    def _line(self, match: dict[str, Any], side: str, text: str) -> dict[str, Any]:
        benchmarks, first = self._benchmarks, self._index.first[match["item"]]
        start, end = match["start"], min(match["end"], match["start"] + LONGEST)
        return {
            "row": 0,
            "id": None,
            "side": side,
            "benchmark": files.utf8(benchmarks.files[benchmarks.of_file[first]].file),
            "item": benchmarks.rows[first],
            "column": benchmarks.columns[first],
            **{name: match[name] for name in ("shared", "total", "share")},
            "words": text[start:end],
            "context": text[max(0, start - AROUND) : end + AROUND],
            "item_text": benchmarks.texts[first][:LONGEST],
        }

    def by_benchmark(self) -> list[dict[str, Any]]:
        return [
            {
                "file": bench.file,
                "items": bench.items,
                "unreadable": bench.unreadable,
                "texts": bench.texts,
                "too_short": bench.too_short,
                "contaminated": self._rows_of[number],
                "texts_found": len(self._items_of.get(number, ())),
            }
            for number, bench in enumerate(self._benchmarks.files)
        ]


def show(found: dict[str, Any]) -> None:
    """Prints what `decontaminate` returned for people."""
    out = console()
    share = f"{found['share']:.0%}" if found["share"] else "any"
    note = f"{share} of the {found['ngram']}-grams of a benchmark's text, in {', '.join(found['on'])}"
    lines = [
        ("rows out", found["rows_out"], ""),
        ("contaminated", found["contaminated"], note),
        *skipped_lines(found["skipped_reasons"]),
    ]
    show_counts(from_to(found), found["rows_in"], lines)
    for bench in found["benchmarks"]:
        out.print(
            f"\n{one_line(bench['file'])}: {bench['items']:,} items with {bench['texts']:,} texts; "
            f"{bench['contaminated']:,} rows hold {bench['texts_found']:,} of these",
            soft_wrap=True,
        )
        if bench["too_short"]:
            out.print(f"  {bench['too_short']:,} texts have too few words to tell, and were not looked for")
        if bench["unreadable"]:
            out.print(f"  {bench['unreadable']:,} items could not be read")
    aside = found["boilerplate"]
    if aside["ngrams"]:
        out.print(
            f"\nset aside as boilerplate: {aside['ngrams']:,} of {aside['of']:,} n-grams, in more than "
            f"{aside['items_beyond']} items or {aside['rows_beyond']:,} rows",
            soft_wrap=True,
        )
        for phrase in aside["phrases"][:SHOWN]:
            where = f"{phrase['rows']:,} rows, {phrase['items']:,} items"
            out.print(f"  {where}: {one_line(phrase['words'], 120)}", soft_wrap=True)
    if found["first_matches"]:
        shown = len(found["first_matches"])
        more = "" if shown == found["matches"] else f", the first {shown}; --matches FILE writes all"
        out.print(f"\nmatches: {found['matches']:,}{more}")
    for match in found["first_matches"]:
        column = f" `{one_line(match['column'], 40)}`" if match["column"] else ""
        name = "" if match["id"] is None else f" ({one_line(match['id'], 40)})"
        out.print(
            f"  row {match['row']:,}{name}, {match['side']}: {match['shared']} of {match['total']} n-grams "
            f"of item {match['item']:,}{column} of {one_line(match['benchmark'])}",
            soft_wrap=True,
        )
        before, _, after = match["context"].partition(match["words"])
        words = one_line(match["words"], 200)
        out.print(f"    …{one_line(before, 80)}[{words}]{one_line(after, 80)}…", soft_wrap=True)
