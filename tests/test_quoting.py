"""Fast JSON text is the same text: the ids of rows and the keys of paid calls hang on it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from clair_apo.build.rows import _digest
from clair_apo.llm.chat import Request
from clair_apo.quoting import quoted

anything = st.text(st.characters())  # lone surrogates too
valid = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | valid,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(valid, inner, max_size=3),
    max_leaves=5,
)


@given(anything)
def test_strings(text: str) -> None:
    assert quoted(text) == json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")


@given(valid, valid, st.none() | valid)
def test_ids(role: str, content: str, response: str | None) -> None:
    messages = [{"role": role, "content": content}, {"content": "x", "role": "user"}]
    text = json.dumps([messages, response], ensure_ascii=False, sort_keys=True)
    assert _digest(messages, response) == hashlib.sha256(text.encode()).digest()[:16]


@given(valid, anything, st.dictionaries(valid, values, max_size=4), valid)
def test_keys(model: str, content: str, params: dict[str, Any], stage: str) -> None:
    params = {k: v for k, v in params.items() if k not in ("model", "messages")}
    request = Request(model, [{"role": "user", "content": content}], params)
    text = json.dumps([stage, request.body()], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    plain = hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"row").digest()[:16]
    assert request.key(stage, b"row") == plain
