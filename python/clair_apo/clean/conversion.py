"""`clair-apo convert`: the pairs of any table in the shape that somebody else reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from clair_apo import files
from clair_apo.clean.hub import write_folder
from clair_apo.clean.rows import BATCH_BYTES, Progress, RowReader, RowWriter, Spec, check_paths
from clair_apo.clean.summary import reasons
from clair_apo.conversations import Conversation, ConversationReader
from clair_apo.errors import UsageError
from clair_apo.files import Row
from clair_apo.shapes import Skipped
from clair_apo.tables import MESSAGES, TableWriter
from clair_apo.terminal import one_line

BATCH_ROWS = 256


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _flat(messages: list[dict[str, str]]) -> str:
    """A prompt as text: of several messages, each with its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def _trl(pair: Conversation) -> list[Row]:
    answers = {"chosen": _answer(pair.chosen), "rejected": _answer(pair.rejected)}
    return [{"prompt": pair.prompt, **answers}]


def _trl_text(pair: Conversation) -> list[Row]:
    return [{"prompt": _flat(pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected}]


def _clair32k(pair: Conversation) -> list[Row]:
    whole = {
        "chosen": pair.prompt + _answer(pair.chosen),
        "rejected": pair.prompt + _answer(pair.rejected),
    }
    return [{"prompt": pair.prompt[-1]["content"], **whole, "rational": pair.rationale}]


def _unpaired(pair: Conversation) -> list[Row]:
    return [
        {"prompt": pair.prompt, "completion": _answer(text), "label": label}
        for text, label in ((pair.chosen, True), (pair.rejected, False))
    ]


_TEXT = pa.string()
_SHAPES: dict[str, tuple[pa.Schema, Callable[[Conversation], list[Row]]]] = {
    "trl": (pa.schema([("prompt", MESSAGES), ("chosen", MESSAGES), ("rejected", MESSAGES)]), _trl),
    "trl-text": (pa.schema([("prompt", _TEXT), ("chosen", _TEXT), ("rejected", _TEXT)]), _trl_text),
    "clair32k": (
        pa.schema([("prompt", _TEXT), ("chosen", MESSAGES), ("rejected", MESSAGES), ("rational", _TEXT)]),
        _clair32k,
    ),
    "unpaired": (
        pa.schema([("prompt", MESSAGES), ("completion", MESSAGES), ("label", pa.bool_())]),
        _unpaired,
    ),
}
FORMATS = (*_SHAPES, "jsonl", "hub")


def convert(
    file: Spec,
    to: str,
    output: Spec | None = None,
    on_progress: Progress | None = None,
    push_to_hub: str | None = None,
    license: str | None = None,
) -> dict[str, Any]:
    """Writes the pairs of `file` in the shape `to` (one of `FORMATS`) into `output`; without one, into a
    file beside the input named after it. `jsonl` writes every row as it is, `hub` a folder, see
    `write_folder`.

    Returns: what `clair-apo convert --json` prints. `rows_in` = `pairs` + `skipped` (`skipped_reasons`
    says why); `rows_out` is twice `pairs` for `unpaired`. For `jsonl`, `pairs` is null and
    `rows_in` = `rows_out` + `skipped`.

    Raises ClairError where the input cannot be read or holds no pairs, UsageError for an unknown shape.
    """
    if to not in FORMATS:
        raise UsageError(f"--to {one_line(str(to))}: not one of {', '.join(FORMATS)}")
    if to != "hub" and (push_to_hub or license):
        raise UsageError("--push-to-hub and --license go with --to hub")
    path = _default_output(file, to) if output is None else Path(output)
    if to == "hub":
        return write_folder(file, path, push_to_hub, license, on_progress)
    check_paths(file, path)
    if to == "jsonl" and files.suffix(path) == ".parquet":
        raise UsageError(f"{one_line(str(path))}: --to jsonl writes .jsonl or .jsonl.gz (or .jsonl.zst)")
    rows_in, rows_out, pairs, skipped = (_lines if to == "jsonl" else _pairs)(file, to, path, on_progress)
    return {
        "file": str(file),
        "output": str(path),
        "to": to,
        "rows_in": rows_in,
        "rows_out": rows_out,
        "pairs": pairs,
        "skipped": sum(s.rows for s in skipped.values()),
        "skipped_reasons": reasons(skipped),
    }


def _default_output(file: Spec, to: str) -> Path:
    source = Path(os.fspath(file))
    if not source.exists():
        files.expand(file)  # a missing file is told as such
        raise UsageError("--output is needed where the input is a pattern of files")
    source = source.absolute() if source.name in ("", "..") else source
    name = source.name if source.is_dir() else source.name[: -len(files.suffix(source)) or None]
    return source.with_name(name + {"jsonl": ".jsonl", "hub": ".hub"}.get(to, f".{to}.parquet"))


_Counts = tuple[int, int, int | None, dict[str, Skipped]]


def _lines(file: Spec, to: str, output: Path, on_progress: Progress | None) -> _Counts:
    reader = RowReader(file)
    with RowWriter(output, reader) as writer:
        for rows in reader:
            writer.write(rows)
            if on_progress is not None:
                on_progress(str(file), reader.rows_read, reader.total_rows)
    bad = reader.unreadable
    return reader.rows_read, writer.rows, None, {"unreadable": bad} if bad else {}


def _pairs(file: Spec, to: str, output: Path, on_progress: Progress | None) -> _Counts:
    schema, shaped = _SHAPES[to]
    source = ConversationReader(file)
    total = source.total_rows
    pairs = 0
    pending: list[Row] = []
    size = 0
    with TableWriter(output, schema) as writer:
        for pair in source:
            pairs += 1
            pending += shaped(pair)
            size += sum(len(m["content"]) for m in pair.prompt) + len(pair.chosen) + len(pair.rejected)
            if len(pending) >= BATCH_ROWS or size >= BATCH_BYTES:
                writer.write(pending)
                pending, size = [], 0
                if on_progress is not None:
                    on_progress(str(file), source.rows_read, total)
        writer.write(pending)
    return source.rows_read, writer.rows, pairs, source.skipped
