"""One schema for several files, where nothing is lost by it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from clair_apo.errors import ClairError
from clair_apo.tables import MAY_LACK, is_pair_table
from clair_apo.terminal import one_line


def unified(files: Sequence[tuple[str, pa.Schema]], loose: tuple[str, pa.Schema] | None) -> pa.Schema:
    """The schema that files of these (name, schema) fit into: of the first one, with columns widened
    where others need it. `loose` is what was found in files of text, whose rows may lack columns. Pair
    tables may lack what earlier versions did not write, or what another input did not carry.

    Raises ClairError that names both files where there is none.
    """

    def shown(column: str) -> str:
        return f"`{one_line(column, 40)}`"

    if not files:
        return pa.schema([]) if loose is None else loose[1]
    if all(is_pair_table(schema) for _, schema in files):
        files = _filled(files)
    first_name, first = files[0]
    types = {item.name: (item.type, item.nullable, first_name) for item in first}
    for name, schema in [*files[1:], *([loose] if loose else [])]:
        lacking = next((n for n in types if n not in schema.names), None)
        if lacking is not None and (loose is None or name != loose[0]):
            raise _differ(first_name, name, f"only the first has the column {shown(lacking)}")
        for item in schema:
            if item.name not in types:
                raise _differ(first_name, name, f"only the second has the column {shown(item.name)}")
            kind, nullable, where = types[item.name]
            common = common_type(kind, item.type)
            if common is None:
                how = f"the column {shown(item.name)} is of type {kind} in one, {item.type} in the other"
                raise _differ(where, name, how)
            types[item.name] = (common, nullable or item.nullable, where if common == kind else name)
        if loose and name == loose[0]:
            missing = set(types) - set(schema.names)
            types = {n: (t, null or n in missing, w) for n, (t, null, w) in types.items()}
    fields = [
        pa.field(item.name, types[item.name][0], types[item.name][1], item.metadata) for item in first
    ]
    return pa.schema(fields, first.metadata)


def _filled(files: Sequence[tuple[str, pa.Schema]]) -> list[tuple[str, pa.Schema]]:
    """The schemas of pair tables, each with the columns besides that it may lack and another one has."""
    found = {item.name: item for _, schema in files for item in schema if item.name in MAY_LACK}
    filled = []
    for name, schema in files:
        for column, item in found.items():
            if column not in schema.names:
                schema = schema.append(item)
        filled.append((name, schema))
    return filled


def _differ(name: str, other: str, how: str) -> ClairError:
    return ClairError(
        f"{name} and {other} do not go together: {how}. Files that are read together need the same columns."
    )


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds every value of both exactly; None where there is none."""
    is_ = pa.types
    if a == b or is_.is_null(b):
        return a
    if is_.is_null(a):
        return b
    if is_.is_dictionary(a) or is_.is_dictionary(b):
        plain = [kind.value_type if is_.is_dictionary(kind) else kind for kind in (a, b)]
        return common_type(*plain)
    if _text(a) and _text(b):
        return pa.large_string()
    if _bytes(a) and _bytes(b):
        return pa.large_binary()
    for same in (is_.is_signed_integer, is_.is_unsigned_integer, is_.is_floating):
        if same(a) and same(b):
            return a if a.bit_width >= b.bit_width else b
    if _list(a) and _list(b):
        item = common_type(a.value_type, b.value_type)
        return None if item is None else pa.large_list(item)
    if is_.is_struct(a) and is_.is_struct(b):
        return _struct(a, b)
    return None


def _struct(a: pa.StructType, b: pa.StructType) -> pa.StructType | None:
    others = {b.field(i).name: b.field(i).type for i in range(b.num_fields)}
    if {a.field(i).name for i in range(a.num_fields)} != set(others) or len(others) != a.num_fields:
        return None
    fields = []
    for i in range(a.num_fields):
        item = common_type(a.field(i).type, others[a.field(i).name])
        if item is None:
            return None
        fields.append(pa.field(a.field(i).name, item))
    return pa.struct(fields)


def _text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
