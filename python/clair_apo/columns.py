"""What `clair_apo.text` is given for a column, as something that the core reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["readable"]


def readable(values: Any, name: str) -> Any:
    """Arrow data as it is; a sequence of `str` and `None`, or numpy's or pandas' own containers of such,
    as Arrow data.

    Raises: `TypeError` for anything else, `ValueError` for a `str` that UTF-8 cannot hold; both name the
    column.
    """
    if _is_arrow(values):
        return values
    if hasattr(values, "__arrow_array__"):  # the array behind a pandas column
        return values.__arrow_array__()
    if hasattr(values, "to_series"):  # a pandas index
        return values.to_series()
    if hasattr(values, "__array_interface__") and getattr(values, "ndim", 0) == 1:
        # NaN is what pandas puts into numpy's arrays where a text is missing.
        rows = [None if isinstance(x, float) and math.isnan(x) else x for x in values.tolist()]
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
        # A whole slice: columns of datasets are slow row by row.
        rows = list(values[:])
    else:
        hint = ", which is to be collected first" if hasattr(values, "collect") else ""
        raise TypeError(
            f"`{name}` is of type {type(values).__name__}{hint}: expected an Arrow column of strings "
            "or a list of str"
        )
    for row, value in enumerate(rows):
        if value is not None and not isinstance(value, str):
            raise TypeError(
                f"`{name}` holds a value of type {type(value).__name__} in row {row}, "
                "which is not text: expected str or None"
            )
    from arro3.core import Array, DataType

    try:
        return Array(rows, type=DataType.large_utf8())
    except UnicodeEncodeError:
        row = next(row for row, value in enumerate(rows) if value is not None and not _is_utf8(value))
        raise ValueError(
            f"`{name}` holds half of a surrogate pair in row {row}, which UTF-8 cannot say"
        ) from None


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_arrow(values: Any) -> bool:
    return hasattr(values, "__arrow_c_array__") or hasattr(values, "__arrow_c_stream__")
