"""Answers of other models in the input, with their ratings where there are some.

Either one column holds a list of them in UltraFeedback's shape (`model`, `response`, and `overall_score` or
`rating`), as a list or as JSON text, or each has a column of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clair_apo import files
from clair_apo.build.draft import Answer

TEXTS = ("response", "text", "content", "answer")
RATINGS = ("overall_score", "rating", "score")
MODELS = ("model", "model_name")
# What the column is called in UltraFeedback, and where none is named.
USUAL_COLUMN = "completions"
# A prompt or an answer beyond this is no chat text but a mistake in the table; it would take the whole
# context of any model, and hours to compare.
MAX_CELL_BYTES = 4 << 20


class BadAnswers(Exception):
    """No two answers can be had from a row; `column` is where to look."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


def from_list(cell: object, column: str) -> tuple[Answer, ...]:
    """The answers of one cell in UltraFeedback's shape; an entry without a text is left out.

    Raises BadAnswers.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise BadAnswers(column, "a text that is no JSON, where a list of answers belongs") from None
    if not isinstance(cell, list):
        raise BadAnswers(column, f"a {files.json_type(cell)}, where a list of answers belongs")
    found = []
    for number, item in enumerate(cell):
        if not isinstance(item, dict):
            raise BadAnswers(column, f"answer {number} is a {files.json_type(item)}, not an object")
        text = _text(next((item[name] for name in TEXTS if item.get(name) is not None), None), column)
        if text is not None:
            model = next((item[name] for name in MODELS if isinstance(item.get(name), str)), None)
            rating = next((r for name in RATINGS if (r := number_in(item.get(name))) is not None), None)
            found.append(Answer(text, None if model is None else files.utf8(model), rating))
    return _two(found, column)


def from_columns(
    record: Mapping[str, Any], columns: Sequence[str], ratings: Sequence[str]
) -> tuple[Answer, ...]:
    """One answer of each of `columns`, under its name as the model's, with the rating that stands in the
    same place of `ratings` (none: no ratings); an empty cell is no answer.

    Raises BadAnswers.
    """
    found = []
    for number, name in enumerate(columns):
        text = _text(record.get(name), name)
        if text is not None:
            rating = number_in(record.get(ratings[number])) if ratings else None
            found.append(Answer(text, name, rating))
    return _two(found, ", ".join(columns))


def number_in(value: object) -> float | None:
    """A rating as a number; a text may hold one. None for anything else, NaN included."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(cell: object, column: str) -> str | None:
    if isinstance(cell, list) and len(cell) == 1 and isinstance(cell[0], dict):
        cell = cell[0].get("content")  # an answer as TRL writes it
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if not isinstance(cell, str):
        raise BadAnswers(column, f"a {files.json_type(cell)}, where the text of an answer belongs")
    text = files.utf8(cell)
    if len(text.encode()) > MAX_CELL_BYTES:
        raise BadAnswers(column, f"an answer of more than {MAX_CELL_BYTES >> 20} MiB")
    return text


def _two(found: list[Answer], column: str) -> tuple[Answer, ...]:
    if len(found) < 2:
        raise BadAnswers(column, f"{len(found)} answers, where at least two are needed")
    return tuple(found)
