"""No text of a model or a file acts on the terminal, and ordinary text of any script stays."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clair_apo.terminal import colour_allowed, console, one_line, safe, width

HARMLESS = "\n\t\u200c\u200d" + "".join(map(chr, range(0xFE00, 0xFE10)))


@pytest.mark.parametrize(
    ("nasty", "shown"),
    [
        ("\x1b[2J\x1b[H", "␛[2J␛[H"),
        ("\x1b]8;;http://evil\x1b\\click\x1b]8;;\x07", "␛]8;;http://evil␛\\click␛]8;;␇"),
        ("\x1b]52;c;cm0gLXJm\x07", "␛]52;c;cm0gLXJm␇"),
        ("\x9b31mred", "\\u{9b}31mred"),
        ("\x90q\x9c\x9d0;title\x9c", "\\u{90}q\\u{9c}\\u{9d}0;title\\u{9c}"),
        ("safe\rEVIL", "safe␍EVIL"),
        ("a\b\x7f\x00\x0b\x0c", "a␈␡␀␋␌"),
        ("abc\u202edcba\u202c", "abc\\u{202e}dcba\\u{202c}"),
        ("\u2066x\u2069\u200e\u200f\u061c", "\\u{2066}x\\u{2069}\\u{200e}\\u{200f}\\u{61c}"),
        ("pay\u200bpal \ufeff\u2060\xad", "pay\\u{200b}pal \\u{feff}\\u{2060}\\u{ad}"),
        ("a\u200db \u200c", "a\\u{200d}b \\u{200c}"),
        ("\U000e0041\U000e0042", "\\u{e0041}\\u{e0042}"),
        ("x\ufe01\ufe02", "x\ufe01\\u{fe02}"),
        ("\u3164\u2028\u2029", "\\u{3164}\\u{2028}\\u{2029}"),
        ("half \ud83d", "half \\u{d83d}"),
    ],
)
def test_nasty_text_is_shown_not_obeyed(nasty: str, shown: str) -> None:
    assert safe(nasty) == shown


@pytest.mark.parametrize(
    "text",
    [
        "plain\n\ttext",
        "naïve — “quotes” e\u0301",
        "日本語 한국어 ไทย",
        "می\u200cخواهم",
        "क\u094d\u200dष",
        "👨\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3",
        "👩\u200d❤\ufe0f\u200d👨",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert safe(text) == text


def test_real_answers_stay(shared_data: Path) -> None:
    for name in ("pairs_revision", "answers_rated"):
        table = pq.read_table(shared_data / f"{name}.parquet", columns=["prompt"])
        for text in table["prompt"].to_pylist():
            bad = [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t"]
            if not bad:
                assert safe(text) == text


@given(st.text(st.characters(), max_size=30))
def test_nothing_that_acts_or_hides_is_left(text: str) -> None:
    shown = safe(text)
    # Arabic number signs and the like are of category Cf too, but are seen.
    left = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert set(left) <= set("\n\t")
    assert not set(shown) & set(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200B]))
    if shown != text:
        assert any(c not in HARMLESS for c in text)
    shown.encode()


def test_one_line() -> None:
    assert one_line("a\nb\tc\x1b") == "a␊b␉c␛"
    assert one_line("x" * 500, 10) == "x" * 9 + "…"
    assert one_line("\x1b" * 3, 3) == "␛␛␛"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_and_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert colour_allowed(_Terminal())
    assert not colour_allowed(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour_allowed(_Terminal())
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = _Terminal()
    console(stream).print("[bold]x[/bold] :smile:", style="red")
    assert stream.getvalue() == "[bold]x[/bold] :smile:\n"


def test_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, expected in (("100", 100), ("5", 40), ("1000", 200)):
        monkeypatch.setenv("COLUMNS", columns)
        assert width() == expected
