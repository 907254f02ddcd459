"""The commands `stats` and `diff` as they are typed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clair_apo.errors import ClairError, UsageError
from clair_apo.report import command


def parsed(name: str, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    getattr(command, f"{name}_arguments")(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args(words)


def run(name: str, *words: Any) -> int:
    status: int = getattr(command, f"run_{name}")(parsed(name, *map(str, words)))
    return status


def test_help_is_cheap_and_has_an_example() -> None:
    code = (
        "import sys, argparse; from clair_apo.report import command as c\n"
        "for add in (c.stats_arguments, c.diff_arguments):\n"
        "    p = argparse.ArgumentParser(); add(p); assert 'clair-apo ' in p.format_help()\n"
        "heavy = {'pyarrow', 'rich', 'numpy', 'clair_apo._core'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stats(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [shared_data / f"{n}.parquet" for n in ("pairs_revision", "pairs_stronger_preferred")]
    assert run("stats", *files) == 0
    out, err = capsys.readouterr()
    assert "jaccard ↑" in out
    assert "\x1b" not in out
    assert err == ""
    assert run("stats", "--json", *files) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [f["file"] for f in report["files"]] == [str(f) for f in files]
    assert report["schema"] == 1
    assert out.isascii()


def test_diff(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shared_data / "pairs_revision.parquet"
    assert run("diff", file) == 0
    assert capsys.readouterr().out.count("edit ratio") == 3
    for words in (["--row", 0], ["--sample", 1, "--seed", 4], ["--largest", 1], ["--smallest", 1]):
        assert run("diff", file, "--json", *words) == 0
        out, err = capsys.readouterr()
        (entry,) = json.loads(out)["pairs"]
        assert {"row", "id", "edits", "rejected", "chosen", "jaccard"} <= set(entry)
        assert err == ""


@pytest.mark.parametrize("words", [["--row", "-1"], ["--sample", "0"], ["--largest", "-3"]])
def test_impossible_values(shared_data: Path, words: list[str]) -> None:
    with pytest.raises(UsageError, match=words[0]):
        run("diff", shared_data / "pairs_revision.parquet", *words)


def test_one_selection_only(shared_data: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed("diff", "p.parquet", "--row", "1", "--largest", "2")
    assert stop.value.code == 2
    args = parsed("diff", "p.parquet", "--row", "1")
    args.largest = 2  # as a config file can have it
    with pytest.raises(UsageError, match="--row and --largest"):
        command.run_diff(args)


def test_missing_files(tmp_path: Path) -> None:
    for name in ("stats", "diff"):
        with pytest.raises(ClairError, match="no such file") as error:
            run(name, tmp_path / "none.parquet")
        assert error.value.exit_code == 1


def test_the_bar_is_for_terminals(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(command.Bar, "PATIENCE", 0)
    monkeypatch.setenv("TERM", "xterm")
    for quiet, no_color, drawn in ((False, "", True), (True, "", False), (False, "1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        words = ["--quiet"] if quiet else []
        assert run("stats", shared_data / "pairs_revision.parquet", "--json", *words) == 0
        assert bool(stream.getvalue()) == drawn
