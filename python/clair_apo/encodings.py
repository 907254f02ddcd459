"""Which encoding a name stands for: tiktoken's names, OpenAI's models, the file of a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from clair_apo import _core

ENCODINGS: tuple[str, ...] = tuple(_core.ENCODINGS)

Counter: TypeAlias = _core.Tokenizer | Callable[[list[str]], list[int]]
"""What counts: a tokenizer of the core's, or a function of a list of texts."""

# As tiktoken maps models to encodings; a test compares the two. It knows names from before cl100k_base too.
_OLD = {
    "p50k_base": "text-davinci-003 text-davinci-002 code-davinci-002 code-davinci-001 code-cushman-002 "
    "code-cushman-001 davinci-codex cushman-codex",
    "p50k_edit": "text-davinci-edit-001 code-davinci-edit-001",
    "r50k_base": "text-davinci-001 text-curie-001 text-babbage-001 text-ada-001 davinci curie babbage ada "
    "text-similarity-davinci-001 text-similarity-curie-001 text-similarity-babbage-001 "
    "text-similarity-ada-001 text-search-davinci-doc-001 text-search-curie-doc-001 "
    "text-search-babbage-doc-001 text-search-ada-doc-001 code-search-babbage-code-001 "
    "code-search-ada-code-001",
    "gpt2": "gpt2 gpt-2",
}
_MODELS = {
    "o200k_base": "o1 o3 o4-mini gpt-5 gpt-4.1 gpt-4o",
    "cl100k_base": "gpt-4 gpt-3.5-turbo gpt-3.5 gpt-35-turbo davinci-002 babbage-002 "
    "text-embedding-ada-002 text-embedding-3-small text-embedding-3-large",
    **_OLD,
}
MODEL_TO_ENCODING = {model: encoding for encoding, models in _MODELS.items() for model in models.split()}
# The first that fits counts.
MODEL_PREFIX_TO_ENCODING = {
    "o1-": "o200k_base",
    "o3-": "o200k_base",
    "o4-mini-": "o200k_base",
    "gpt-5": "o200k_base",
    "gpt-4.5-": "o200k_base",
    "gpt-4.1-": "o200k_base",
    "chatgpt-4o-": "o200k_base",
    "gpt-4o-": "o200k_base",
    "gpt-4-": "cl100k_base",
    "gpt-3.5-turbo-": "cl100k_base",
    "gpt-35-turbo-": "cl100k_base",
    "gpt-oss-": "o200k_harmony",
    "ft:gpt-4o": "o200k_base",
    "ft:gpt-4": "cl100k_base",
    "ft:gpt-3.5-turbo": "cl100k_base",
    "ft:davinci-002": "cl100k_base",
    "ft:babbage-002": "cl100k_base",
}
# o200k_base with more special tokens, which count as ordinary text here.
_SAME = {"o200k_harmony": "o200k_base"}


def encoding_of_model(model: str) -> str | None:
    """The name of the encoding of an OpenAI model, as tiktoken has it; None for others."""
    exact = MODEL_TO_ENCODING.get(model)
    if exact is not None:
        return exact
    prefixes = MODEL_PREFIX_TO_ENCODING.items()
    return next((encoding for prefix, encoding in prefixes if model.startswith(prefix)), None)


def counter_of(name: str | os.PathLike[str]) -> Counter:
    """What counts the tokens of `name`, an encoding, an OpenAI model, or the path of a `tokenizer.json` or
    of a folder with one. Something with `.json` at its end or a separator in it is a path, and so is a
    name that is neither an encoding nor a model.

    Raises: `ValueError` for a name that stands for nothing, or a file that is no tokenizer; `OSError` for
    one that cannot be read; `ImportError` for one that only the package `tokenizers` counts, without it.
    """
    if isinstance(name, str) and not _is_path(name):
        encoding = name if name in (*ENCODINGS, *_SAME, *_OLD) else encoding_of_model(name)
        encoding = _SAME.get(encoding or "", encoding)
        if encoding in ENCODINGS:
            return _core.tokenizer_of_encoding(encoding)
        if encoding is not None:
            raise ValueError(
                f"the encoding of '{name}', {encoding}, is not here: known are {', '.join(ENCODINGS)}"
                if encoding != name
                else f"unknown encoding '{name}': known are {', '.join(ENCODINGS)}"
            )
        if not os.path.exists(name):
            raise ValueError(
                f"unknown encoding '{name}': known are {', '.join(ENCODINGS)}, OpenAI's models, "
                "and the path of a tokenizer.json or of a folder with one"
            )
    path = Path(name)
    if path.is_dir():
        path /= "tokenizer.json"
    about = path.stat()
    return _counter_of_file(str(path.resolve()), about.st_mtime_ns, about.st_size)


def _is_path(name: str) -> bool:
    return name.endswith(".json") or os.sep in name or bool(os.altsep and os.altsep in name)


@lru_cache(maxsize=4)
def _counter_of_file(path: str, _changed: int, _size: int) -> Counter:
    """Files are read again when they changed."""
    try:
        tokenizer, reason = _core.tokenizer_of_json(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return tokenizer or _library_counter(path, reason)


def _library_counter(path: str, reason: str) -> Callable[[list[str]], list[int]]:
    """The same counts from the package `tokenizers`, for what is not counted here."""
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            f"{path} has {reason}, which only the package `tokenizers` counts: pip install tokenizers"
        ) from None
    try:
        tokenizer: Any = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer: {error}") from None
    # Texts are counted whole and by themselves.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(one) for one in encoded]

    return count
