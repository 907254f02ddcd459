"""Polars expressions: `import clair_apo.polars`, then

    frame.with_columns(distance=pl.col("rejected").clair.levenshtein("chosen"))
    frame.with_columns(pl.col("rejected").clair.score("chosen").alias("score")).unnest("score")

They work in eager and lazy frames, in the streaming engine (which measures part by part), in `group_by`
and in `over`. Columns are read in place: String, Categorical, Enum or Null. A literal, or another
expression of one value, stands beside every row. A null on either side gives null, and the result has
the name of the first column. `clair_apo.text` says what a word and a character are and documents each
measure; its errors are raised as they are, with the expression that they occurred in: `TypeError` for a
column that is not text, `ValueError` for columns of different length or an unknown unit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import polars as pl

from clair_apo import text

__all__ = ["SCORE", "ClairExpressions"]

IntoText: TypeAlias = pl.Expr | str
"""An expression, or the name of a column."""

PolarsType: TypeAlias = pl.DataType | type[pl.DataType]

SCORE = pl.Struct(
    {
        "jaccard": pl.Float64,
        "levenshtein": pl.UInt32,
        "levenshtein_ratio": pl.Float64,
        "word_edits": pl.UInt32,
        "word_edit_ratio": pl.Float64,
        "chosen_chars": pl.UInt32,
        "rejected_chars": pl.UInt32,
        "chosen_words": pl.UInt32,
        "rejected_words": pl.UInt32,
        "length_ratio": pl.Float64,
        "edit_position": pl.Array(pl.UInt32, 10),
        "identical": pl.Boolean,
    }
)
"""The type of `score`."""


@pl.api.register_expr_namespace("clair")
class ClairExpressions:
    """Measures of a text column (where it matters the rejected one) against another one (the chosen)."""

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def levenshtein(self, other: IntoText, unit: Literal["char", "word"] = "char") -> pl.Expr:
        """Levenshtein distance: UInt32, in characters or words."""
        return self._with(other, lambda a, b: text.levenshtein(a, b, unit), pl.UInt32)

    def levenshtein_ratio(self, other: IntoText) -> pl.Expr:
        """Distance in characters over the longer text's: Float64 from 0 to 1, 0 when both are empty."""
        return self._with(other, text.levenshtein_ratio, pl.Float64)

    def word_edits(self, other: IntoText) -> pl.Expr:
        """Cost of a minimal edit script over words: UInt32, words."""
        return self.levenshtein(other, unit="word")

    def word_edit_ratio(self, other: IntoText) -> pl.Expr:
        """Word edits over the longer text's words: Float64 from 0 to 1, 0 when both have none.

        A field of `score`, at the price of all of it: whoever wants several takes them from one `score`.
        """
        return self._field(other, "word_edit_ratio", pl.Float64)

    def edit_position(self, other: IntoText) -> pl.Expr:
        """Word edits that start in each tenth of this text: Array(UInt32, 10). At the price of `score`."""
        return self._field(other, "edit_position", pl.Array(pl.UInt32, 10))

    def jaccard(self, other: IntoText) -> pl.Expr:
        """Jaccard similarity of the sets of words: Float64 from 0 to 1, 1 when both have none."""
        return self._with(other, text.jaccard, pl.Float64)

    def length_ratio(self, other: IntoText) -> pl.Expr:
        """Characters of the other text over those of this one: Float64, null where this one is empty."""
        return self._with(other, _length_ratio, pl.Float64)

    def score(self, other: IntoText) -> pl.Expr:
        """Every measure of `clair_apo.text.score`, this text being the rejected and the other the chosen
        one: a struct of type `SCORE`, to be unnested. All fields are null where either text is."""
        return self._with(other, text.score, SCORE)

    def count_tokens(self, encoding: str | os.PathLike[str] = "o200k_base") -> pl.Expr:
        """Tokens in an encoding, of an OpenAI model or by a `tokenizer.json`: UInt32."""

        def count(column: pl.Series) -> pl.Series:
            return pl.Series(column.name, text.count_tokens(column, encoding))

        return self._expr.map_batches(count, return_dtype=pl.UInt32, is_elementwise=True)

    def is_near_duplicate(
        self,
        *,
        threshold: float = 0.8,
        shingle: int = 5,
        exact: bool = False,
        keep: Literal["first", "shortest"] = "first",
        seed: int = 0,
    ) -> pl.Expr:
        """Whether each text is equal to, or near, one that stays: Boolean, for nulls false.
        `frame.filter(~pl.col("prompt").clair.is_near_duplicate())` leaves out what
        `clair_apo.text.near_duplicates` names. It looks at the whole column, in `over` at each group."""

        def find(column: pl.Series) -> pl.Series:
            gone = text.near_duplicates(
                column, threshold=threshold, shingle=shingle, exact=exact, keep=keep, seed=seed
            )
            mask = pl.repeat(False, len(column), dtype=pl.Boolean, eager=True).alias(column.name)
            return mask.scatter(pl.Series(gone["row"]), True)

        return self._expr.map_batches(find, return_dtype=pl.Boolean)

    def _field(self, other: IntoText, name: str, dtype: PolarsType) -> pl.Expr:
        return self._with(other, lambda a, b: text.score(a, b)[name], dtype)

    def _with(
        self, other: IntoText, measure: Callable[[pl.Series, pl.Series], Any], dtype: PolarsType
    ) -> pl.Expr:
        def both(columns: Sequence[pl.Series]) -> pl.Series:
            name = columns[0].name
            result = measure(*_same_length(columns[0], columns[1]))
            if dtype == SCORE:
                return pl.DataFrame(result).to_struct(name)
            return pl.Series(name, result)

        # Row by row: a stream is then measured in parts, and groups in one call.
        return pl.map_batches(
            [self._expr, _expression(other)], both, return_dtype=dtype, is_elementwise=True
        )


def _expression(column: IntoText) -> pl.Expr:
    return pl.col(column) if isinstance(column, str) else column


def _same_length(a: pl.Series, b: pl.Series) -> tuple[pl.Series, pl.Series]:
    """A literal comes as one row; polars' own functions repeat it, so this does too."""
    if len(a) == 1 and len(b) != 1:
        return a.new_from_index(0, len(b)), b
    if len(b) == 1 and len(a) != 1:
        return a, b.new_from_index(0, len(a))
    return a, b


def _length_ratio(a: pl.Series, b: pl.Series) -> pl.Series:
    return _chars(b, "b") / _chars(a, "a").replace(0, None)


def _chars(column: pl.Series, name: str) -> pl.Series:
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        raise TypeError(f"`{name}` is of type {column.dtype}, which is not text")
    return column.cast(pl.String).str.len_chars()
