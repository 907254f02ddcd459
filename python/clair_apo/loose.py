"""One Arrow type for each loose column: of JSON, where every row is free to say something else.

A column keeps its own type where every value has it: truth values, whole numbers, numbers, text, and
lists and objects of these. Anything else (mixed types, numbers beyond 64 bits, empty objects, deep
nesting) is kept as its JSON text, so that nothing is lost and no value can break a table half-way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from clair_apo.files import BadRow, Row, utf8

MAX_DEPTH = 8
# Whole numbers up to here are exact as float64 too, so they go together with fractions.
_EXACT = 1 << 53


class _NoType(Exception):
    """No common type: the column becomes JSON text."""


@dataclass(frozen=True)
class _Plain:
    name: str  # null, bool, int, big (beyond 2**53), float, text


@dataclass(frozen=True)
class _Items:
    item: _Type


@dataclass(frozen=True)
class _Fields:
    fields: Mapping[str, _Type]


_Type = _Plain | _Items | _Fields
_NULL = _Plain("null")
_ARROW = {
    "null": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "big": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
}


class LooseTypes:
    """Collects the types of all columns but the `named` ones, row by row."""

    def __init__(self, named: set[str]) -> None:
        self._named = named
        self._types: dict[str, _Type | None] = {}  # None: JSON text

    def see(self, record: Mapping[str, object]) -> None:
        for name, value in record.items():
            if name in self._named:
                continue
            known = self._types.get(name, _NULL)
            if known is not None:
                try:
                    self._types[name] = _merged(known, _type_of(value))
                except _NoType:
                    self._types[name] = None

    def schema(self) -> pa.Schema:
        """One field per column, in the order in which they first came."""
        return pa.schema([(utf8(name), _arrow(kind)) for name, kind in self._types.items()])


def as_text(value: object) -> str | None:
    """A value of a column of text: itself, or its JSON text. What UTF-8 cannot hold becomes `?`."""
    if value is None:
        return None
    return utf8(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _type_of(value: object, depth: int = 0) -> _Type:
    if depth > MAX_DEPTH:
        raise _NoType
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return _Plain("bool")
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise _NoType
        return _Plain("int" if abs(value) <= _EXACT else "big")
    if isinstance(value, float):
        return _Plain("float")
    if isinstance(value, str):
        if depth and utf8(value) != value:
            raise _NoType
        return _Plain("text")
    if isinstance(value, list):
        item: _Type = _NULL
        for element in value:
            item = _merged(item, _type_of(element, depth + 1))
        return _Items(item)
    if isinstance(value, dict) and value and all(utf8(key) == key for key in value):
        return _Fields({key: _type_of(element, depth + 1) for key, element in value.items()})
    raise _NoType


def _merged(a: _Type, b: _Type) -> _Type:
    if a == b or b == _NULL:
        return a
    if a == _NULL:
        return b
    if isinstance(a, _Items) and isinstance(b, _Items):
        return _Items(_merged(a.item, b.item))
    if isinstance(a, _Fields) and isinstance(b, _Fields):
        names = dict.fromkeys([*a.fields, *b.fields])
        return _Fields({n: _merged(a.fields.get(n, _NULL), b.fields.get(n, _NULL)) for n in names})
    plain = {kind.name for kind in (a, b) if isinstance(kind, _Plain)}
    if plain == {"int", "big"}:
        return _Plain("big")
    if plain == {"int", "float"}:
        return _Plain("float")
    raise _NoType


def _arrow(kind: _Type | None) -> pa.DataType:
    if kind is None:
        return pa.string()
    if isinstance(kind, _Items):
        return pa.list_(_arrow(kind.item))
    if isinstance(kind, _Fields):
        return pa.struct([(name, _arrow(item)) for name, item in kind.fields.items()])
    return _ARROW[kind.name]


def from_records(records: list[Row | BadRow], columns: pa.StructType) -> pa.StructArray:
    """Loose rows as structs of the type `columns`, which was found from them."""
    arrays = []
    for item in columns:
        values = [record.get(item.name) if isinstance(record, dict) else None for record in records]
        if item.type == pa.string():
            values = [as_text(value) for value in values]
        arrays.append(pa.array(values, item.type))
    return pa.StructArray.from_arrays(arrays, fields=list(columns))
