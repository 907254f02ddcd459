"""JSON strings, fast: the bytes that `json.dumps(text, ensure_ascii=False)` gives, on which hashes hang."""

from __future__ import annotations

import json

import orjson


def quoted(text: str) -> bytes:
    """`text` as a JSON string in UTF-8; a lone surrogate as the three bytes it would have."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError:
        return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")
