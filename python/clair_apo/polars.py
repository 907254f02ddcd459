"""Polars expressions: `import clair_apo.polars`, then

    frame.with_columns(distance=pl.col("rejected").clair.levenshtein(pl.col("chosen")))

Each call hands whole columns to `clair_apo.text`, which reads them in place and documents the measures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import polars as pl

from clair_apo import text

__all__ = ["ClairExpressions"]

IntoText: TypeAlias = pl.Expr | str
"""An expression, or the name of a column."""


@pl.api.register_expr_namespace("clair")
class ClairExpressions:
    """Measures of a text column against another one."""

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def levenshtein(self, other: IntoText, unit: Literal["char", "word"] = "char") -> pl.Expr:
        """Levenshtein distance: UInt32, in characters or words."""
        return self._with(other, lambda a, b: text.levenshtein(a, b, unit), pl.UInt32)

    def levenshtein_ratio(self, other: IntoText) -> pl.Expr:
        """Character distance over the longer length: Float64 from 0 to 1."""
        return self._with(other, text.levenshtein_ratio, pl.Float64)

    def word_edits(self, other: IntoText) -> pl.Expr:
        """Cost of a minimal script over words: UInt32."""
        return self.levenshtein(other, unit="word")

    def jaccard(self, other: IntoText) -> pl.Expr:
        """Jaccard similarity of the sets of words: Float64 from 0 to 1."""
        return self._with(other, text.jaccard, pl.Float64)

    def count_tokens(self, encoding: str | os.PathLike[str] = "o200k_base") -> pl.Expr:
        """Tokens in an encoding, of an OpenAI model or by a `tokenizer.json`: UInt32."""

        def count(column: pl.Series) -> pl.Series:
            return pl.Series(column.name, text.count_tokens(column, encoding))

        return self._expr.map_batches(count, return_dtype=pl.UInt32, is_elementwise=True)

    def _with(
        self,
        other: IntoText,
        measure: Callable[[pl.Series, pl.Series], Any],
        dtype: type[pl.DataType],
    ) -> pl.Expr:
        def both(columns: Sequence[pl.Series]) -> pl.Series:
            a, b = _same_length(columns[0], columns[1])
            return pl.Series(columns[0].name, measure(a, b))

        second = pl.col(other) if isinstance(other, str) else other
        return pl.map_batches([self._expr, second], both, return_dtype=dtype)


def _same_length(a: pl.Series, b: pl.Series) -> tuple[pl.Series, pl.Series]:
    """A literal comes as one row; polars' own functions repeat it, so this does too."""
    if len(a) == 1 and len(b) != 1:
        return a.new_from_index(0, len(b)), b
    if len(b) == 1 and len(a) != 1:
        return a, b.new_from_index(0, len(a))
    return a, b
