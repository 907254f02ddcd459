"""The prompt of each row of a batch as text, whatever the shape of the table."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from clair_apo.clean.rows import RowBatch
from clair_apo.errors import ClairError
from clair_apo.files import BadRow, as_rows
from clair_apo.shape_rows import PROMPT_NAMES, Layout, layout_of, optional_value
from clair_apo.terminal import one_line


class Prompts:
    """Finds the prompts of a table with these columns; `column` names the one that holds them.

    Raises ClairError where there is no such column, or none that could hold a prompt.
    """

    def __init__(self, name: str, columns: Sequence[str], column: str | None = None) -> None:
        shown = ", ".join(one_line(c, 40) for c in columns[:20]) or "none"
        if column is not None and column not in columns:
            raise ClairError(f"{name}: no column {one_line(column, 40)!r}; it has {shown}")
        # Text cells may hold lists of messages as JSON: CSV's do, and mixed columns of JSON Lines.
        found = layout_of(columns, json_cells=True)
        source = column or next((n for n in PROMPT_NAMES if n in columns), None)
        if found is None and source is None:
            raise ClairError(
                f"{name}: has no prompts. Its columns are: {shown}. Name one with --prompt-column."
            )
        if found is None or column is not None:
            chosen, rejected = ("", None) if found is None else (found.chosen, found.rejected)
            found = Layout(chosen, rejected, {"prompt": source}, json_cells=True)
        self._layout = found
        self.columns = [source] if source is not None else [found.chosen]

    def of(self, rows: RowBatch) -> list[str | None]:
        """The prompts of a batch as text; of several messages, each with its role."""
        batch = rows.batch.select(self.columns)
        column = batch.column(0)
        if pa.types.is_null(column.type):
            return [None] * rows.num_rows
        return [
            None if isinstance(row, BadRow) else optional_value("prompt", row, self._layout)
            for row in as_rows(batch)
        ]
