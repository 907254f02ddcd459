"""Single pairs as word diffs: which ones, and how they look in a terminal.

`--largest` and `--smallest` go by `levenshtein_ratio`, the edit ratio; of equal ones the earlier
row comes first. `--sample` draws by Algorithm R from the pairs that can be read, so that the same
file, number and seed give the same pairs, and prints them in the order of the file.
"""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from clair_apo import text as words
from clair_apo.errors import ClairError
from clair_apo.report.summary import Progress
from clair_apo.shapes import Pair, PairBatch, pair_at, pair_with_id, read_pairs
from clair_apo.tables import MEASURES
from clair_apo.terminal import one_line, safe

SCHEMA = 1
COLUMNS = ("id", "prompt", "rationale", "method", "flags", "chosen_model", "rejected_model")
CONTEXT = 80  # characters kept on each side of a change
SIDE_BY_SIDE = 120  # columns from which the rationale stands beside the diff
PROMPT_LINES = 4
OLD, NEW = "red strike", "green underline"

Path = str | os.PathLike[str]


def select(
    file: Path, how: str, value: int | str, seed: int = 0, on_progress: Progress | None = None
) -> list[Pair]:
    """The pairs that one flag of `diff` selects: `how` is its name, `value` what it was given.

    Raises ClairError where the file cannot be read or has no such row, id, or any pair at all.
    """
    if how == "row":
        return [pair_at(file, int(value), COLUMNS)]
    if how == "id":
        return [pair_with_id(file, str(value), COLUMNS)]
    batches = _told(file, on_progress)
    if how == "sample":
        pairs = _sample(batches, int(value), seed)
    else:
        pairs = _extreme(batches, int(value), 1 if how == "largest" else -1)
    if not pairs:
        raise ClairError(
            f"{one_line(str(file))}: holds no pair that can be read; `clair-apo stats` says why"
        )
    return pairs


def _told(file: Path, on_progress: Progress | None) -> Iterator[PairBatch]:
    reader = read_pairs(file, COLUMNS)
    for batch in reader:
        yield batch
        if on_progress is not None:
            on_progress(str(file), reader.rows_read, reader.total_rows)


def _sample(batches: Iterator[PairBatch], count: int, seed: int) -> list[Pair]:
    chance, seen = random.Random(seed), 0
    kept: list[Pair] = []
    for batch in batches:
        for i in range(len(batch)):
            seen += 1
            if len(kept) < count:
                kept.append(batch.pair(i))
            elif (place := chance.randrange(seen)) < count:
                kept[place] = batch.pair(i)
    return sorted(kept, key=lambda pair: pair.row)


class _Ranked(NamedTuple):
    rank: float
    earlier: int  # rows are unique, so the pairs themselves are never compared
    pair: Pair


def _extreme(batches: Iterator[PairBatch], count: int, sign: int) -> list[Pair]:
    best: list[_Ranked] = []
    for batch in batches:
        scores = pa.table(words.score(batch.rejected, batch.chosen))
        rows, ratios = batch.row.to_pylist(), scores["levenshtein_ratio"].to_pylist()
        for i, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
            if len(best) < count:
                heapq.heappush(best, _Ranked(sign * ratio, -row, batch.pair(i)))
            elif (sign * ratio, -row) > best[0][:2]:
                heapq.heapreplace(best, _Ranked(sign * ratio, -row, batch.pair(i)))
    return [entry.pair for entry in sorted(best, key=lambda e: e[:2], reverse=True)]


def document(file: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What `diff --json` prints. Edits turn `rejected` (a) into `chosen` (b); offsets in
    characters."""
    entries = []
    for pair, measures in zip(pairs, _measures(pairs), strict=True):
        edits = [
            {key: getattr(e, key) for key in ("op", "a_start", "a_end", "b_start", "b_end")}
            for e in words.diff(pair.rejected, pair.chosen)
        ]
        entries.append(
            {
                "row": pair.row,
                **pair.columns,
                "rejected": pair.rejected,
                "chosen": pair.chosen,
                **measures,
                "edits": edits,
            }
        )
    return {"schema": SCHEMA, "file": str(file), "pairs": entries}


def _measures(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    rejected = pa.array([p.rejected for p in pairs], pa.large_string())
    chosen = pa.array([p.chosen for p in pairs], pa.large_string())
    names = [*MEASURES, "identical"]
    rows: list[dict[str, Any]] = pa.table(words.score(rejected, chosen)).select(names).to_pylist()
    return rows


def show(file: Path, pairs: Sequence[Pair], console: Console) -> None:
    """Prints each pair: its name and figures, the prompt, the diff, and the reviser's reasons."""
    piped = not console.is_terminal  # lines broken for a width are of no use to grep
    for i, (pair, measures) in enumerate(zip(pairs, _measures(pairs), strict=True)):
        if i:
            console.print()
        _head(pair, measures, console)
        body = _body(pair, console.color_system is not None)
        rationale = pair.columns.get("rationale")
        if not rationale:
            console.print(body, soft_wrap=piped)
        elif console.width >= SIDE_BY_SIDE:
            beside = Table.grid(padding=(0, 3), expand=True)
            beside.add_column(ratio=3)
            beside.add_column(ratio=2)
            beside.add_row(body, Text.assemble(("why\n", "bold cyan"), safe(rationale)))
            console.print(beside)
        else:
            console.print(body, soft_wrap=piped)
            why = Text.assemble(("\nwhy\n", "bold cyan"), safe(rationale))
            console.print(why, soft_wrap=piped)
    colour = console.color_system is not None
    legend = Text().append_text(_changed("only rejected", "[-", "-]", OLD if colour else ""))
    legend.append("  ").append_text(_changed("only chosen", "{+", "+}", NEW if colour else ""))
    legend.append(f"  {len(pairs)} from {one_line(str(file))}", "dim")
    console.print()
    console.print(legend, soft_wrap=piped)


def _head(pair: Pair, measures: dict[str, Any], console: Console) -> None:
    parts = [f"row {pair.row:,}"]
    if pair.columns.get("id"):
        parts.append(one_line(pair.columns["id"], 40))
    if pair.columns.get("method"):
        parts.append(one_line(pair.columns["method"], 30))
    console.print(Rule(Text(" · ".join(parts), "bold"), align="left", style="dim"))
    figures = (
        f"edit ratio {measures['levenshtein_ratio']:.3f} · jaccard {measures['jaccard']:.3f} · "
        f"{measures['word_edits']:,} word edits · {measures['rejected_chars']:,} → "
        f"{measures['chosen_chars']:,} characters"
    )
    console.print(Text(figures, "dim"))
    models = [pair.columns.get(name) for name in ("rejected_model", "chosen_model")]
    if any(models):
        named = " → ".join(one_line(m, 50) if m else "?" for m in models)
        console.print(Text(named, "dim"))
    if pair.columns.get("flags"):
        flags = ", ".join(one_line(flag, 40) for flag in pair.columns["flags"])
        console.print(Text(f"flags: {flags}", "yellow"))
    if pair.columns.get("prompt"):
        console.print(Text.assemble(("prompt  ", "bold cyan"), _short(pair.columns["prompt"])))
    console.print()


def _short(prompt: str) -> str:
    """The first lines of a prompt; a long one is of no help beside its answers."""
    lines = safe(prompt.strip()[:600]).split("\n")
    text = "\n".join(lines[:PROMPT_LINES])
    return text + (" …" if len(lines) > PROMPT_LINES or len(prompt.strip()) > 600 else "")


def _body(pair: Pair, colour: bool) -> Text:
    edits = words.diff(pair.rejected, pair.chosen)
    if all(edit.op == "equal" for edit in edits):
        return Text("the two answers are identical", "yellow")
    body = Text()
    for i, edit in enumerate(edits):
        old = pair.rejected[edit.a_start : edit.a_end]
        new = pair.chosen[edit.b_start : edit.b_end]
        if edit.op == "equal":
            body.append_text(_unchanged(old, first=i == 0, last=i == len(edits) - 1))
            continue
        if old:
            body.append_text(_changed(old, "[-", "-]", OLD if colour else ""))
        if new:
            body.append_text(_changed(new, "{+", "+}", NEW if colour else ""))
    return body


def _changed(part: str, before: str, after: str, style: str) -> Text:
    """A changed part: by colour, or between marks. White space alone would not show, so it is
    drawn."""
    shown = safe(part)
    if not part.strip():
        shown = shown.replace(" ", "·").replace("\t", "→\t").replace("\n", "↵\n")
    if not style:
        return Text(before + shown + after)
    return Text(shown, style)


def _unchanged(part: str, first: bool, last: bool) -> Text:
    """An unchanged run: the words next to the changes, and how much lies between."""
    head = 0 if first else _cut(part, CONTEXT)
    tail = 0 if last else _cut(part[::-1], CONTEXT)
    hidden = len(part) - head - tail
    if hidden <= CONTEXT:
        return Text(safe(part))
    note = f"… {hidden:,} characters unchanged …"
    folded = Text(safe(part[:head].rstrip()))
    folded.append(("" if first else "\n") + note + ("" if last else "\n"), "dim italic")
    return folded.append(safe(part[len(part) - tail :].lstrip()))


def _cut(part: str, limit: int) -> int:
    """Where to cut after about `limit` characters: at the end of a word, if there is one near."""
    if len(part) <= limit:
        return len(part)
    return next((i for i in range(limit, limit // 2, -1) if part[i].isspace()), limit)
