"""The view of the numbers: fits the terminal, says what is wrong, and obeys no text."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from clair_apo.report import stats
from clair_apo.report.view import show


@pytest.fixture(scope="module")
def report(shared_data: Path) -> dict[str, Any]:
    names = ("pairs_revision", "pairs_stronger_preferred", "answers_rated")
    return stats([shared_data / f"{name}.parquet" for name in names])


def shown(report: dict[str, Any], width: int, colour: bool = False) -> str:
    stream = io.StringIO()
    system: Any = "truecolor" if colour else None
    show(
        report,
        Console(
            file=stream,
            width=width,
            force_terminal=colour,
            color_system=system,
            markup=False,
            highlight=False,
        ),
    )
    return stream.getvalue()


def of(report: dict[str, Any], count: int, **changes: Any) -> dict[str, Any]:
    report = copy.deepcopy({**report, "files": report["files"][:count]})
    report["files"][0] |= changes
    return report


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_lines_fit(report: dict[str, Any], width: int, count: int) -> None:
    text = shown(of(report, count), width)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    if width >= 80:
        assert lines == [line.rstrip() for line in lines]


def test_two_files_stand_beside_each_other_at_80(report: dict[str, Any]) -> None:
    lines = shown(of(report, 2), 80).splitlines()
    assert lines[0].split() == ["pairs_revision", "pairs_stronger_preferred"]
    revision, stronger = report["files"][:2]
    for name, arrow in (("jaccard", "↑"), ("levenshtein_ratio", "↓")):
        line = next(row for row in lines if row.startswith(name.replace("_", " ") + f" {arrow}"))
        for file in (revision, stronger):
            assert f"{file[name]['mean']:.3f} ±{file[name]['std']:.3f}" in line
            assert f"{file[name]['p50']:.3f}" in line
    longer = next(row for row in lines if row.startswith("chosen is longer"))
    assert longer.split()[3:] == ["31.0%", "40.0%"]
    assert next(row for row in lines if row.startswith("identical")).split()[1:3] == ["14", "7.0%"]


def test_files_that_do_not_fit_are_stacked(report: dict[str, Any]) -> None:
    text = shown(report, 80)
    assert text.count("jaccard ↑") == 2
    assert shown(report, 140).count("jaccard ↑") == 1
    assert text.index("pairs_stronger") < text.index("answers_rated")


def test_the_best_stands_out_in_colour(report: dict[str, Any]) -> None:
    best = f"\x1b[1;32m   {report['files'][0]['jaccard']['mean']:.3f}\x1b[0m"
    text = shown(of(report, 2), 80, colour=True)
    assert best in text
    assert text.count("\x1b[1;32m") == 5
    assert "\x1b[1;32m" not in shown(of(report, 1), 80, colour=True)


def test_flags_cost_and_skipped_rows(report: dict[str, Any]) -> None:
    skips = {
        "null": {"rows": 3, "first_row": 1234, "first": "`chosen` is null"},
        "tie": {"rows": 1, "first_row": 0, "first": "all answers have the rating 2"},
    }
    changed = of(
        report,
        2,
        skipped=4,
        skipped_reasons=skips,
        methods={"clair": 200},
        cost_usd=3.0,
        flags={f"flag{i}": 20 - i for i in range(12)},
        tokens_in=1234567,
        tokens_out=2,
    )
    text = shown(changed, 80)
    for part in (
        "4 rows skipped in pairs_revision",
        "one side is null",
        "row 1,234: `chosen`",
        "rate them again",
        "1,234,567",
        "$3.00  $0.01500 a pair",
        "20  flag0",
        "5  more",
        "200  clair",
    ):
        assert part in text, part
    assert "flag7" not in text
    for rest in (f for f in ("tokens in", "cost", "method", "flag", "skipped")):
        assert rest not in shown(of(report, 1), 80)


def test_no_pairs_at_all(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"chosen": null, "rejected": null}\n')
    text = shown(stats(tmp_path / "p.jsonl"), 80)
    assert "jaccard ↑" in text
    assert "nan" not in text.lower()
    assert "1 row skipped in p" in text


def test_text_of_files_is_not_obeyed(report: dict[str, Any]) -> None:
    evil = "x\x1b]52;c;eA==\x07[red]\u202e\r"
    skips = {"null": {"rows": 1, "first_row": 0, "first": evil}}
    changed = of(report, 1, file=evil, flags={evil: 3}, methods={evil: 1}, skipped=1, skipped_reasons=skips)
    text = shown(changed, 140)
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(text)
    assert text.count("[red]") >= 3


def test_names_tell_files_apart(report: dict[str, Any]) -> None:
    twins = of(report, 2, file="/data/a/pairs.parquet")
    twins["files"][1]["file"] = "/data/b/pairs.parquet"
    head = shown(twins, 140).splitlines()[0].split()
    assert head == ["/data/a/pairs.parquet", "/data/b/pairs.parquet"]
    long = of(report, 1, file="名" * 100 + ".parquet")
    assert "…" in shown(long, 80).splitlines()[0]
