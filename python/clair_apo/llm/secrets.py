"""What may be shown of an endpoint, and blanking what may not wherever a server echoes it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

_NAMES = re.compile(r"key|token|secret|sig|pass|auth|code|cookie", re.I)


def shown_url(url: str) -> str:
    """`url` with what may be a secret left out."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))


def basic_auth(url: str) -> str | None:
    """The credentials of `url` as the Basic scheme sends them; None where it has none."""
    parts = urlsplit(url)
    if not parts.username:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return base64.b64encode(pair.encode()).decode()


class Secrets:
    """A key, a URL's credentials and secret headers, in the forms in which a server could echo them.

    A word such as `ollama` or `EMPTY`, given where a server wants any key, is none: blanking it would
    change answers that use the word.
    """

    def __init__(self, url: str, key: str | None, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        found: list[str | None] = [key, parts.password, basic_auth(url)]
        pairs = (pair.partition("=") for pair in parts.query.split("&"))
        found += [value for name, _, value in pairs if _NAMES.search(name)]
        for name, value in headers.items():
            if _NAMES.search(name):
                # `Bearer x` may come back as x, and `a=x; b=y` as x.
                found += [value, *re.split(r"[\s;=]+", value)]
        self._words = sorted(_forms(found), key=len, reverse=True)

    def blank(self, text: str) -> str:
        """`text` with the secrets in it blanked, also where JSON spells them in another way."""
        for word in self._words:
            if word in text:
                text = text.replace(word, "[key]")
        if self._words and ("\\u00" in text or "\\/" in text):
            try:
                body = json.loads(text)
            except (ValueError, RecursionError):
                return text
            if any(word in json.dumps(body, ensure_ascii=False) for word in self._words):
                return json.dumps(self._blanked(body), ensure_ascii=False)
        return text

    def _blanked(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._blanked(k): self._blanked(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._blanked(item) for item in value]
        if isinstance(value, str):
            for word in self._words:
                value = value.replace(word, "[key]")
        return value


def _forms(words: Iterable[str | None]) -> set[str]:
    return {form for word in words if word for form in (word, unquote(word)) if _is_secret(form)}


def _is_secret(word: str) -> bool:
    mixed = any(c.isdigit() for c in word) and any(c.isalpha() for c in word)
    return word.startswith("sk-") or len(word) >= 16 or (len(word) >= 8 and mixed)
