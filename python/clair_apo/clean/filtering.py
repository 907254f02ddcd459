"""`clair-apo filter`: the rows that a condition holds for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clair_apo import files
from clair_apo.clean.condition import Condition
from clair_apo.clean.pairs import PairsByRow
from clair_apo.clean.rows import Progress, RowBatch, RowReader, RowWriter, Spec, check_paths
from clair_apo.clean.summary import reasons
from clair_apo.shapes import Skipped, read_pairs


def filter_rows(
    file: Spec, where: str, output: Spec, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Copies the rows of `file` for which the SQL expression `where` is true into `output`.

    It may use the table's columns, fields of structs (`usage.cost_usd`) and the measures of `stats`,
    which are computed from the texts where the table lacks them. Memory holds a few batches.

    Returns: what `clair-apo filter --json` prints. `rows_in` = `rows_out` + `left_out` (the condition is
    false) + `undecided` (it is null) + `skipped` (rows that cannot be read; `skipped_reasons` says why).
    `unmeasured` tells of the rows that hold no pair while a measure is needed, by reason as
    `skipped_reasons` does: the measure is null there, and the rest of the condition decides.

    Raises ClairError (UsageError where the expression itself is the trouble).
    """
    check_paths(file, output)
    reader = RowReader(file)
    condition = Condition(where, reader.schema)
    if _lines_pass(reader, Path(output)):
        reader.narrow(condition.columns)
    pairs: PairsByRow | PairsOfRows | None = None
    if condition.measures:
        parquet = all(files.suffix(path) == ".parquet" for path in reader.paths)
        pairs = PairsOfRows(reader) if parquet else PairsByRow(file)
    left_out = undecided = 0
    with RowWriter(Path(output), reader) as writer:
        for rows in reader:
            stays = _stays(condition, rows, pairs)
            undecided += stays.null_count
            left_out += pc.sum(pc.invert(stays)).as_py() or 0
            writer.write(rows, stays)
            if on_progress is not None:
                on_progress(str(file), reader.rows_read, reader.total_rows)
    skipped = _unreadable(reader)
    unmeasured = pairs.skipped() if pairs is not None else {}
    return {
        "file": str(file),
        "output": str(output),
        "where": where,
        "computed": condition.measures,
        "rows_in": reader.rows_read,
        "rows_out": writer.rows,
        "left_out": left_out,
        "undecided": undecided,
        "skipped": sum(s.rows for s in skipped.values()),
        "skipped_reasons": reasons(skipped),
        "unmeasured": reasons({r: s for r, s in unmeasured.items() if r != "unreadable"}),
    }


class PairsOfRows:
    """The pairs of the rows that a reader of Parquet gives, without reading the file again."""

    def __init__(self, reader: RowReader) -> None:
        self._reader = reader
        self._pairs = read_pairs(reader.spec)

    def of(self, rows: RowBatch) -> dict[str, Any]:
        """`rejected` and `chosen` of each row as Arrow arrays, null where a row holds no pair."""
        found = self._pairs.of_batch(rows.batch, rows.first_row, rows.path)
        if len(found) == rows.num_rows:
            return {"rejected": found.rejected, "chosen": found.chosen}
        numbers = pc.add(found.row, -rows.first_row).to_pylist()
        places: list[int | None] = [None] * rows.num_rows
        for place, row in enumerate(numbers):
            places[row] = place
        index = pa.array(places, pa.int64())
        return {"rejected": found.rejected.take(index), "chosen": found.chosen.take(index)}

    def skipped(self) -> dict[str, Skipped]:
        """Rows that hold no pair, by reason, once all rows have been read."""
        return {**self._pairs.skipped, **_unreadable(self._reader)}


def _unreadable(reader: RowReader) -> dict[str, Skipped]:
    return {"unreadable": reader.unreadable} if reader.unreadable else {}


def _lines_pass(reader: RowReader, output: Path) -> bool:
    """Whether lines of JSON are passed on as they stand, so that no other column need be decoded."""
    return files.suffix(output) != ".parquet" and all(".jsonl" in files.suffix(p) for p in reader.paths)


def _stays(condition: Condition, rows: RowBatch, pairs: PairsByRow | PairsOfRows | None) -> pa.BooleanArray:
    """The condition's answers; null where it cannot be told."""
    arrays = [rows.batch.column(name) for name in condition.columns] if condition.columns else []
    names = list(condition.columns)
    if pairs is not None:
        if isinstance(pairs, PairsOfRows):
            texts = pairs.of(rows)
        else:
            texts = pairs.take(rows.first_row, rows.num_rows)
        for name, column in measured(condition.measures, texts["rejected"], texts["chosen"]):
            names.append(name)
            arrays.append(column)
    return condition.of(pa.table(arrays, names), rows.num_rows)


def measured(names: list[str], rejected: Any, chosen: Any) -> Iterator[tuple[str, Any]]:
    """The named measures (of `condition.MEASURES`) of each pair; null for null."""
    from clair_apo import text

    alone = {
        "jaccard": lambda: text.jaccard(rejected, chosen),
        "levenshtein": lambda: text.levenshtein(rejected, chosen),
        "levenshtein_ratio": lambda: text.levenshtein_ratio(rejected, chosen),
        "word_edits": lambda: text.levenshtein(rejected, chosen, unit="word"),
        "chosen_tokens": lambda: text.count_tokens(chosen),
        "rejected_tokens": lambda: text.count_tokens(rejected),
    }
    together = [name for name in names if not name.endswith("_tokens")]
    if len(together) == 1 and together[0] in alone:
        together = []
    scores = pa.table(text.score(rejected, chosen)) if together else None
    for name in names:
        if scores is not None and name in together:
            yield name, scores[name].combine_chunks()
        else:
            yield name, pa.array(alone[name]())
