"""What `train` says on a terminal, and where there is none."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import pytest
import runs
from rich.cells import cell_len

from clair_apo.terminal import duration
from clair_apo.train import view
from clair_apo.train.outcome import CHOSEN, REJECTED
from clair_apo.train.view import View, _compact, _Curve, _Spark

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of stderr; not a fixture, since pytest puts its own stderr back before the test begins."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(view, "PATIENCE", 0.0)
    return stream


def run(shown: View, records: list[dict[str, Any]], objective: str = "apo-zero") -> None:
    """What the loop calls, in its order."""
    facts = runs.facts(records, objective)
    with shown.bar("tokenising", "rows") as advance:
        advance(10, 20)
        advance(20, 20)
    shown.header(facts)
    with shown.bar("reference", "steps") as advance:
        advance(1, 2)
        advance(2, 2)
    with shown.training(facts["steps"]) as show:
        for record in records:
            if "eval_loss" in record:
                with shown.bar("held-out pairs", "steps") as advance:
                    advance(1, 1)
            show(record)
    shown.closing(facts, records)


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(View(), runs.metrics(100))
    out, err = capsys.readouterr()
    assert out == ""
    assert ESCAPE not in err
    lines = err.splitlines()
    assert "objective  apo-zero  loss = 1 − σ(r_c) + σ(r_r)" in lines
    assert "pairs      11,874 of 12,010 rows in pairs_revision.parquet" in lines
    assert "           left out: 131 too long, 5 identical" in lines
    steps = [line for line in lines if line.startswith("step ")]
    # The first and the last; between them half a minute must pass.
    assert [line.split(",")[0] for line in steps] == ["step 1/100", "step 100/100"]
    assert "chosen 0.00, rejected 0.00" in steps[0]
    assert re.search(r"chosen \+\d", steps[1])
    assert re.search(r"rejected -\d", steps[1])
    assert sum(line.startswith("held-out pairs after step") for line in lines) == 5
    assert "✓ on held-out pairs, chosen up, rejected down: what apo-zero promises" in lines
    assert lines[-1].startswith("written to trained:")
    assert "steps      100 of 64 pairs: 0.538 epochs" in lines


def test_a_phase_tells_what_it_took_but_not_amid_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr("clair_apo.train.view.time.monotonic", lambda: float(next(clock)))
    shown = View()
    with shown.bar("reference", "steps") as advance:
        advance(3, 3)
    with shown.training(1), shown.bar("held-out pairs", "steps") as advance:
        advance(2, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["reference 3/3 steps in 10 s"]


def test_a_plain_line_comes_every_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("clair_apo.train.view.time.monotonic", lambda: float(next(clock)))
    with View().training(50) as show:
        for record in runs.metrics(50, evaluations=0):
            show(record)
    lines = capsys.readouterr().err.splitlines()
    assert 10 < len(lines) < 30
    assert "left" in lines[5]


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = terminal(monkeypatch)
    run(View(quiet=True), runs.metrics(20))
    View(quiet=True).say("hello")
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_one_line_is_rewritten_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    run(View(), runs.metrics(30))
    text = stream.getvalue()
    assert "\x1b[2K" in text  # a line is wiped
    assert "\x1b[?25h" in text  # and the cursor is back


def test_no_color_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    run(View(), runs.metrics(30))
    assert ESCAPE not in stream.getvalue()
    assert "step 30/30" in stream.getvalue()


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 160, 200])
def test_the_line_fits_and_keeps_what_matters(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    curve = _Curve(2_000, 0, "apo-zero")
    for record in runs.metrics(200, evaluations=0, noise=0):
        curve.add(record)
    line = curve.line().plain
    assert cell_len(line) < columns
    assert "200/2,000" in line
    if columns >= 80:
        assert re.search(r"chosen [▁▂▃].*█", line)
        assert re.search(r"↑ \+\d", line)
        assert re.search(r"rejected [▅▆▇█].*↓ -\d", line)
    if columns >= 100:
        assert "loss" in line
        assert "left" in line
    if columns >= 160:
        for word in ("margin", "accuracy", "tok/s"):
            assert word in line


@pytest.mark.parametrize(
    ("objective", "colours"),
    [("apo-zero", {"green"}), ("apo-down", {"red", "green"}), ("dpo", {"cyan"})],
)
def test_colours_say_whether_it_is_as_promised(objective: str, colours: set[str]) -> None:
    curve = _Curve(100, 0, objective)
    for record in runs.metrics(100, evaluations=0):
        curve.add(record)
    spans = {span.style for span in curve.line().spans if span.style not in ("dim", "bright_black")}
    assert spans - {"green"} == colours - {"green"}
    assert ("green" in spans) or objective == "dpo"


def test_a_metric_that_is_none_leaves_its_place_empty() -> None:
    curve = _Curve(5, 0, "sft")
    curve.add({"step": 1, "loss": None, CHOSEN: math.nan, REJECTED: None})
    assert curve.line().plain.startswith("step 1/5")
    assert "nan" not in curve.line().plain + curve.plain()
    assert curve.plain().startswith("step 1/5")


def test_a_spark_keeps_the_shape_of_a_long_run() -> None:
    rises, falls = _Spark(), _Spark()
    for n in range(100_000):
        rises.add(n / 1000)
        falls.add(-n / 1000)
        rises.add(math.nan)
    assert rises.blocks(8) == "▁▂▃▄▅▆▇█"
    assert falls.blocks(8) == "█▇▆▅▄▃▂▁"
    assert len(rises._means) <= _Spark.LIMIT
    assert _Spark().blocks(8) == ""


@pytest.mark.parametrize("plain", [True, False])
def test_hostile_names_reach_no_terminal(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    records = runs.metrics(3)
    facts = runs.facts(records, model=runs.HOSTILE, pairs=runs.HOSTILE, hardware=runs.HOSTILE)
    facts["dropped"] = {runs.HOSTILE: 3}
    facts["settings"]["output_dir"] = runs.HOSTILE
    shown = View()
    shown.header(facts)
    shown.closing(facts, records)
    shown.say(runs.HOSTILE)
    text = stream.getvalue()
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert "[y](z)" in text


class Tokenizer:
    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens is False
        return {1: "<user>\nWhy?", 2: "Because \x1b[2J.<end>", 3: "No." * 400}[tokens[0]]


class Pair:
    prompt, chosen, rejected = (np.array([n], np.int32) for n in (1, 2, 3))


def test_samples_mark_what_is_scored(capsys: pytest.CaptureFixture[str]) -> None:
    View().samples([Pair()], Tokenizer())
    err = capsys.readouterr().err
    assert "prompt    <user>␊Why?" in err
    assert "chosen    ⟦Because ␛[2J.<end>⟧  1 tokens" in err
    assert "rejected  ⟦No.No." in err
    assert len(err) < 800


def test_the_summary_of_a_run_that_logged_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    facts = runs.facts([])
    View().closing(facts, [])
    assert "no log-probabilities relative to a reference were measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.949, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "0.5"), (4.754, "4.75"), (312.4, "312"), (3118, "3,118"), (52_340, "52.3k"), (4.2e8, "420M")],
)
def test_rates_have_three_digits_that_matter(value: float, said: str) -> None:
    assert _compact(value) == said
