"""The condition of `filter`: a SQL expression that says yes or no of one row.

Polars reads the expression and evaluates it. It would also take what needs all rows at once (`AVG(x)`,
`ROW_NUMBER() OVER …`), and over a batch of rows that would be silently wrong; so the parsed tree is looked
at first, and only what is known to look at one row alone passes.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clair_apo.errors import ClairError, UsageError
from clair_apo.terminal import one_line

if TYPE_CHECKING:
    import polars as pl

MEASURES: dict[str, pa.DataType] = {
    "jaccard": pa.float64(),
    "levenshtein": pa.uint32(),
    "levenshtein_ratio": pa.float64(),
    "word_edits": pa.uint32(),
    "word_edit_ratio": pa.float64(),
    "chosen_chars": pa.uint32(),
    "rejected_chars": pa.uint32(),
    "chosen_words": pa.uint32(),
    "rejected_words": pa.uint32(),
    "chosen_tokens": pa.uint32(),
    "rejected_tokens": pa.uint32(),
    "length_ratio": pa.float64(),
    "identical": pa.bool_(),
}

# What looks at one row alone, by the names in polars' tree. Families of functions, but for a few members:
_FAMILIES = {"StringExpr", "ListExpr", "ArrayExpr", "StructExpr", "TemporalExpr", "Pow", "Trigonometry"}
_FUNCTIONS = {
    *("Abs", "Atan2", "Ceil", "Coalesce", "Exp", "FillNull", "Floor", "Log", "MaxHorizontal"),
    *("MinHorizontal", "Negate", "Round", "Sign"),
}
_MEMBERS = {
    "Boolean": {"Not", "IsNull", "IsNotNull", "IsFinite", "IsInfinite", "IsNan", "IsNotNan", "IsIn"},
    "Sql": {"ToFloat", "Round", "Binary", "IsIn"},
}
_NOT_IN_FAMILY = {"ConcatVertical"}

# What in SQL is no code: text, names in quotes, remarks.
_QUOTED = re.compile(
    r"\be'(?:\\.|''|[^'\\])*'|'(?:''|[^'])*'|\"(?:\"\"|[^\"])*\"|`[^`]*`|\$(\w*)\$.*?\$\1\$"
    r"|--[^\n]*|/\*.*?\*/",
    re.IGNORECASE | re.DOTALL,
)
_SUBQUERY = re.compile(r"\bselect\b|\(\s*(?:from|with)\b|\b(?:read|scan)_\w+\s*\(", re.IGNORECASE)


class Condition:
    """A condition over the columns of `schema` and the measures that it lacks.

    `columns` and `measures` are the names that it uses. Raises UsageError for what is no condition on
    one row, ClairError for an unknown column or a missing polars.
    """

    def __init__(self, where: str, schema: pa.Schema) -> None:
        polars = _polars()
        self.where = where
        self._expr = _parsed(where)
        try:
            part = next(_whole_table(json.loads(self._expr.meta.serialize(format="json"))), None)
        except RecursionError as error:
            raise UsageError(
                f"--where {one_line(where, 60)}: the condition is too deep; `id IN ('a', 'b', …)` "
                "stands for many comparisons, and several runs of filter for many conditions"
            ) from error
        if part is not None:
            raise UsageError(
                f"{self._shown}: {part} cannot be used; a condition must follow from one row alone, "
                "since tables are read a batch at a time"
            )
        names = dict.fromkeys(self._expr.meta.root_names())
        self.columns = [name for name in names if name in schema.names]
        self.measures = [name for name in names if name not in schema.names and name in MEASURES]
        for name in names:
            if name not in schema.names and name not in MEASURES:
                raise ClairError(self._unknown(name, schema.names))
        # Over no rows at all: what has wrong types is found before anything is written.
        fields = [schema.field(name) for name in self.columns]
        fields += [pa.field(name, MEASURES[name]) for name in self.measures]
        kind = self._evaluate(pa.schema(fields).empty_table()).dtype
        if kind not in (polars.Boolean, polars.Null):
            raise UsageError(f"{self._shown}: gives a value of type {kind}, where yes or no belongs")

    @property
    def _shown(self) -> str:
        return f"--where {one_line(self.where)}"

    def of(self, table: pa.Table, rows: int) -> pa.BooleanArray:
        """Yes, no or null for each of the `rows` rows of a table with the columns and measures used."""
        found = self._evaluate(table)
        answers = pa.array(found.cast(_polars().Boolean).to_arrow(), pa.bool_())
        if len(answers) == 1 and rows != 1:  # of literals alone
            answers = pa.repeat(answers[0], rows)
        return answers

    def _evaluate(self, table: pa.Table) -> pl.Series:
        polars = _polars()
        try:
            frame = polars.from_arrow(table) if table.num_columns else polars.DataFrame()
            # Differences of counts may be negative, which unsigned numbers would wrap.
            counts = polars.col(polars.UInt8, polars.UInt16, polars.UInt32)
            frame = frame.with_columns(counts.cast(polars.Int64))
            found: pl.Series = frame.select(self._expr).to_series()
            return found
        except polars.exceptions.StructFieldNotFoundError as error:
            raise ClairError(f"{self._shown}: {self._no_field(str(error), table.schema)}") from error
        except (polars.exceptions.PolarsError, TypeError, ValueError, pa.ArrowException) as error:
            said = one_line(str(error).strip().splitlines()[0])
            hint = ""
            if "conversion from" in said:
                hint = "; TRY_CAST gives null where CAST fails"
            elif "cannot compare string" in said:
                hint = "; the column is text, and CAST(column AS DOUBLE) makes numbers of it"
            elif "cannot compare 'date" in said:
                said = "cannot compare a date or time with text"
                hint = "; write DATE '2026-01-31'"
            elif "Datetime" in said:
                hint = "; a time with a zone is compared with DATE '2026-01-31'"
            raise UsageError(f"{self._shown}: {said}{hint}") from error

    def _unknown(self, name: str, columns: list[str]) -> str:
        if f'"{name}"' in self.where:
            hint = f"; text goes in single quotes: '{one_line(name, 40)}'"
        elif near := difflib.get_close_matches(name, [*columns, *MEASURES], 1, 0.6):
            hint = f"; the nearest is `{one_line(near[0], 40)}`"
        else:
            hint = ""
        odd = next((c for c in columns if name in c and c in self.where and not c.isidentifier()), None)
        if odd is not None:
            hint = f'; such a name goes in double quotes: "{one_line(odd, 40)}"'
        shown = ", ".join(one_line(column, 40) for column in columns[:30])
        return (
            f"{self._shown}: no column `{one_line(name, 40)}`{hint}. The table has {shown}; computed "
            f"where it lacks them are {', '.join(MEASURES)}."
        )

    def _no_field(self, field: str, schema: pa.Schema) -> str:
        kinds = {item.name: item.type for item in schema if pa.types.is_struct(item.type)}
        have = "; ".join(
            f"{one_line(name, 40)} has {', '.join(kind.field(i).name for i in range(kind.num_fields))}"
            for name, kind in kinds.items()
        )
        return f"no field `{one_line(field, 40)}`; {one_line(have)}"


def _polars() -> Any:
    try:
        import polars
    except ImportError as error:
        raise ClairError(
            "filter needs polars, which is not installed: pip install 'clair-apo[polars]'"
        ) from error
    return polars


def _parsed(where: str) -> pl.Expr:
    polars = _polars()
    # Polars opens the files of `read_csv('…')` as it parses, so they are refused before that.
    if _SUBQUERY.search(_QUOTED.sub(" ", where)):
        raise UsageError(
            f"--where {one_line(where)}: a subquery cannot be used; a condition must follow from one row "
            "alone, and opens no other file"
        )
    try:
        found: pl.Expr = polars.sql_expr(where)
        return found
    except (polars.exceptions.PolarsError, OSError) as error:
        said = one_line(str(error).strip().splitlines()[0])
        raise UsageError(f"--where {one_line(where)}: not a SQL condition: {said}") from error


def _whole_table(node: Any) -> Iterator[str]:
    """The parts of an expression's tree that are not known to look at one row alone, in words."""
    if not isinstance(node, Mapping) or len(node) != 1:
        yield "COUNT" if node == "Len" else f"`{one_line(str(node), 40)}`"
        return
    ((kind, inner),) = node.items()
    if kind in ("Column", "Literal"):
        return
    if kind == "Alias":
        yield from _whole_table(inner[0])
    elif kind in ("BinaryExpr", "Ternary"):
        for part in ("left", "right") if kind == "BinaryExpr" else ("predicate", "truthy", "falsy"):
            yield from _whole_table(inner[part])
    elif kind == "Cast":
        yield from _whole_table(inner["expr"])
    elif kind == "Function":
        if not _by_row(inner):
            yield f"the function {_shown(inner['function'])}"
        for part in inner["input"]:
            yield from _whole_table(part)
    elif kind == "Agg":
        yield f"an aggregate ({_name(inner)})"
    elif kind in ("Over", "Window", "Rolling"):
        yield "a window function (OVER)"
    elif kind == "SubPlan":
        yield "a subquery"
    elif kind == "Explode":
        yield "UNNEST"
    else:
        yield f"`{one_line(kind, 40)}`"


def _by_row(call: Mapping[str, Any]) -> bool:
    """Whether a function looks at one row alone."""
    function = call["function"]
    name = _name(function)
    if not isinstance(function, Mapping):
        return name in _FUNCTIONS
    member = _name(function[name])
    if name in _MEMBERS:
        # With a column in place of a list of values, IN would look at the whole of it.
        values_given = member != "IsIn" or all("Literal" in part for part in call["input"][1:])
        return member in _MEMBERS[name] and values_given
    return name in _FUNCTIONS or (name in _FAMILIES and member not in _NOT_IN_FAMILY)


def _name(part: Any) -> str:
    """The name of a part of the tree: itself, or the one key that holds its settings."""
    return str(next(iter(part), "") if isinstance(part, Mapping) else part)


def _shown(function: Any) -> str:
    """A function as people know it: `Quantile`, `Boolean.Any`."""
    member = _name(function[_name(function)]) if isinstance(function, Mapping) else ""
    return _name(function) + (f".{member}" if member and member[0].isupper() else "")
