"""What the commands say at their end: rows in, rows out, and where the rest went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clair_apo.shapes import SKIP_REASONS, Skipped
from clair_apo.terminal import console, one_line


def reasons(skipped: Mapping[str, Skipped]) -> dict[str, dict[str, Any]]:
    """Skipped rows by reason, as `--json` prints them."""
    return {
        reason: {"rows": s.rows, "first_row": s.first_row, "first": s.first}
        for reason, s in skipped.items()
    }


def show(title: str, rows_in: int, lines: Sequence[tuple[str, int, str]]) -> None:
    """Prints a heading, the number of rows read, and what became of them: (label, rows, note)."""
    out = console()
    out.print(title, soft_wrap=True)
    every = [("rows in", rows_in, ""), *lines]
    wide = max(len(label) for label, _, _ in every)
    digits = max(len(f"{rows:,}") for _, rows, _ in every)
    for label, rows, note in every:
        share = "" if label == "rows in" or not rows_in or rows > rows_in else f"{rows / rows_in:7.1%}"
        line = f"  {label:<{wide}}  {rows:>{digits},}  {share:>7}  {note}"
        out.print(line.rstrip(), soft_wrap=True)


def skipped_lines(
    found: Mapping[str, Mapping[str, Any]], label: str = "skipped"
) -> list[tuple[str, int, str]]:
    """One line for each reason of `reasons`."""
    return [
        (
            label,
            each["rows"],
            f"{SKIP_REASONS[reason]}; first: row {each['first_row']}, {one_line(each['first'], 120)}",
        )
        for reason, each in found.items()
    ]


def from_to(document: Mapping[str, Any]) -> str:
    """The heading of a command that reads one thing and writes another."""
    return f"{one_line(document['file'])} → {one_line(document['output'])}"
