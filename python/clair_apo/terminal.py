"""What may go to a terminal: text from files and models made harmless, and whether colour is
wanted.

A model's answer can hold escape sequences that move the cursor, rewrite the screen, set the
clipboard or hide a link; it can also hold characters that show nothing or turn the reading order
around. None of them reaches the terminal: each is shown as a visible sign instead.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

MAX_WIDTH = 200
DEFAULT_WIDTH = 80

# Everything that acts on a terminal or shows nothing: C0 without tab and newline, DEL, C1; soft
# hyphen, grapheme joiner, Hangul and Khmer fillers, Mongolian separators; zero-width and
# directional characters; line and paragraph separators; invisible operators; variation selectors,
# byte-order mark, interlinear marks; musical and shorthand controls; tag characters; and
# surrogates, which cannot even be encoded.
_SUSPECT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ud800-\udfff]"
)
_JOINERS = "\u200c\u200d"


def safe(text: str) -> str:
    """`text` with every character that could act on the terminal, or hide, as a visible sign.

    C0 controls become their Unicode pictures (`␛`), all others `\\u{…}`. Newline and tab stay.
    Joiners and variation selectors stay where scripts and emoji need them: once, beside a visible
    character outside ASCII.
    """
    return _SUSPECT.sub(_visible, text)


def one_line(text: str, limit: int = 200) -> str:
    """`safe(text)` in one line of at most `limit` characters: for names, ids and error messages."""
    line = safe(text[: limit + 1]).replace("\n", "␊").replace("\t", "␉")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _visible(match: re.Match[str]) -> str:
    char = match.group()
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    before = match.string[match.start() - 1 : match.start()]
    after = match.string[match.end() : match.end() + 1]
    if char in _JOINERS and _joinable(before) and _joinable(after):
        return char
    if 0xFE00 <= code <= 0xFE0F and before and not _SUSPECT.match(before) and before not in " \n\t":
        return char
    return f"\\u{{{code:x}}}"


def _joinable(char: str) -> bool:
    """Whether a joiner beside `char` can have a use: not in ASCII, at an end, or beside the
    unseen."""
    if "\ufe00" <= char <= "\ufe0f":  # an emoji's selector, as in a heart that joins two people
        return True
    return char > "\x7f" and not _SUSPECT.match(char) and unicodedata.category(char)[0] not in "CZ"


def colour_allowed(stream: IO[str]) -> bool:
    """Whether `stream` is a terminal that takes colour, and `NO_COLOR` does not forbid it."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def width() -> int:
    """Columns to write in: the terminal's or `COLUMNS`, at most 200; 80 where neither says."""
    return max(40, min(shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns, MAX_WIDTH))


def console(stream: IO[str] | None = None) -> Console:
    """A rich console on `stream` (stdout): plain text without a single escape unless colour is
    allowed.

    It reads no markup and highlights nothing, so no text can be taken for an instruction.
    """
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            # Whoever reads has seen enough (`| head`): that is no failure.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0)

    stream = sys.stdout if stream is None else stream
    colour = colour_allowed(stream)
    if hasattr(stream, "reconfigure"):  # a terminal without Unicode shows ? rather than a traceback
        stream.reconfigure(errors="replace")
    return Ours(
        file=stream,
        width=width(),
        force_terminal=colour,
        color_system="auto" if colour else None,
        markup=False,
        emoji=False,
        highlight=False,
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
