"""What the input carries besides prompt and answer, as one Arrow struct per row.

Columns of Parquet pass from Arrow to Arrow; those of JSON and CSV find one type each, or become JSON text
(`loose`), before the first call is paid.
"""

from __future__ import annotations

import pyarrow as pa

from clair_apo.errors import ClairError
from clair_apo.files import first_line


def struct_type(schemas: list[pa.Schema], loose: pa.Schema, named: set[str]) -> pa.StructType | None:
    """One type for the other columns of all files. Raises ClairError where there is none."""
    others = [pa.schema([f for f in schema if f.name not in named]) for schema in schemas]
    try:
        merged = pa.unify_schemas([*others, loose], promote_options="permissive") if others else loose
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ClairError(
            f"the other columns of these files do not go together: {first_line(error)}"
        ) from error
    return pa.struct([_storable(field) for field in merged]) if len(merged) else None


def from_batch(batch: pa.RecordBatch, places: list[int], extra: pa.StructType) -> pa.StructArray:
    """Some rows of a batch of Parquet as structs of the type `extra`."""
    indices = pa.array(places, pa.int64())
    columns = [
        _readable(batch.column(item.name).cast(item.type).take(indices))
        if item.name in batch.schema.names
        else pa.nulls(len(places), item.type)
        for item in extra
    ]
    return pa.StructArray.from_arrays(columns, fields=list(extra))


def _storable(item: pa.Field) -> pa.Field:
    """A field of a type that Parquet holds and its readers know, whatever the rows are."""
    kind = item.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    empty = pa.types.is_struct(kind) and not kind.num_fields
    if pa.types.is_null(kind) or pa.types.is_string_view(kind) or empty:
        kind = pa.string()
    return pa.field(item.name, kind)


def _readable(column: pa.Array) -> pa.Array:
    """A column of text without bytes that are no UTF-8."""
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        cells = column.cast(pa.large_binary()).to_pylist()
        return pa.array([c if c is None else c.decode("utf-8", "replace") for c in cells], column.type)
    return column
