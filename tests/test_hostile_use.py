"""Table commands used wrongly: typing errors, empty tables, files that cannot be written, signals."""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli import clair, start

COMMANDS = {
    "filter": ["--where", "1 = 1"],
    "convert": ["--to", "trl"],
    "dedup": [],
    "decontaminate": ["--against", "BENCH"],
}


def pairs(path: Path, rows: int) -> Path:
    table = {
        name: pa.array([f"{name} {i} says this" for i in range(rows)], pa.string())
        for name in ("prompt", "chosen", "rejected")
    }
    pq.write_table(pa.table(table), path)
    return path


def flags(command: str, folder: Path) -> list[str]:
    (folder / "bench.txt").write_text("one two three four five six seven eight nine\n")
    return [str(folder / "bench.txt") if word == "BENCH" else word for word in COMMANDS[command]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fliter", "x.parquet"], "did you mean filter?"),
        (["dedup", "x.parquet", "--output", "y.parquet", "--treshold", "0.8"], "did you mean --threshold?"),
        (["dedup", "x.parquet", "--otput=y.parquet"], "did you mean --output?"),
        (["filter", "x.parquet", "--were", "1=1", "--output", "y.parquet"], "did you mean --where?"),
        (["--verison"], "did you mean --version?"),
    ],
)
def test_a_typing_error_names_what_was_meant(arguments: list[str], said: str) -> None:
    done = clair(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_what_is_near_nothing_suggests_nothing() -> None:
    for arguments in (["xyzzy"], ["stats"], ["stats", "x.parquet", "--plugh"]):
        done = clair(*arguments)
        assert done.returncode == 2
        assert "did you mean" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_another_suffix_is_a_usage_error(tmp_path: Path, command: str) -> None:
    source = pairs(tmp_path / "in.parquet", 3)
    done = clair(command, source, *flags(command, tmp_path), "--output", tmp_path / "o.csv")
    assert done.returncode == 2
    assert "o.csv: cannot write this kind of file; the name must end in .parquet" in done.stderr


@pytest.mark.parametrize(("command", "flag"), [("dedup", "--clusters"), ("decontaminate", "--matches")])
def test_another_suffix_of_the_second_file(tmp_path: Path, command: str, flag: str) -> None:
    source = pairs(tmp_path / "in.parquet", 3)
    output = tmp_path / "o.parquet"
    done = clair(command, source, *flags(command, tmp_path), "--output", output, flag, tmp_path / "o.csv")
    assert done.returncode == 2
    assert "o.csv: cannot write this kind of file" in done.stderr
    assert not output.exists()


def test_another_suffix_of_build_pairs(tmp_path: Path) -> None:
    source = pairs(tmp_path / "in.parquet", 3)
    done = clair("build-pairs", "--input", source, "--output", tmp_path / "p.txt")
    assert done.returncode == 2
    assert "must end in" in done.stderr


@pytest.mark.parametrize("name", ["in.parquet", "in.csv"])
def test_a_table_without_rows_is_one(tmp_path: Path, name: str) -> None:
    source = pairs(tmp_path / name, 0)
    if name == "in.csv":
        source.write_text("prompt,chosen,rejected\n")
    for command in COMMANDS:
        output = tmp_path / f"{command}.parquet"
        done = clair(command, source, *flags(command, tmp_path), "--output", output, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["rows_in"], found["rows_out"]) == (0, 0)
        table = pq.read_table(output)
        assert table.num_rows == 0
        assert table.column_names == ["prompt", "chosen", "rejected"]
    done = clair("split", source, "--output-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows_out"] == 0
    for part in ("train", "test"):
        assert pq.read_table(tmp_path / f"in.{part}.parquet").column_names[0] == "prompt"
    done = clair("stats", source, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["files"][0]["pairs"] == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.parquet", b""),
        ("in.csv", b"\n\n"),
        ("in.jsonl", b"\xef\xbb\xbf\n  \n"),
        ("in.jsonl.gz", b""),
        ("in.jsonl.gz", gzip.compress(b"\n\n", mtime=0)),
        ("in.jsonl.zst", b""),
    ],
)
def test_a_file_with_nothing_in_it_is_none(tmp_path: Path, name: str, content: bytes) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    runs = [[c, source, *flags(c, tmp_path), "--output", tmp_path / "o.parquet"] for c in COMMANDS]
    for arguments in [*runs, ["stats", source], ["diff", source], ["split", source]]:
        done = clair(*arguments)
        assert done.returncode == 1, arguments
        assert f"{name}: there is nothing in it" in done.stderr
        assert not (tmp_path / "o.parquet").exists()


def test_an_empty_file_beside_others_is_no_trouble(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a.jsonl").write_text("")
    (folder / "b.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    done = clair("stats", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"][0]["pairs"] == 1


def test_sigterm_leaves_no_file_behind(tmp_path: Path) -> None:
    source = pairs(tmp_path / "in.parquet", 200_000)
    output = tmp_path / "o" / "out.jsonl"
    output.parent.mkdir()
    run = start("filter", source, "--where", "levenshtein >= 0 AND chosen_tokens > 0", "--output", output)
    until = time.monotonic() + 60
    while not any(output.parent.iterdir()) and run.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    assert [path.name[:11] for path in output.parent.iterdir()] == [".out.jsonl."]
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=120)
    assert run.returncode == -signal.SIGTERM
    assert not any(output.parent.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.jsonl", b'[\n {\n  "prompt": "p"\n }\n]\n'),
        ("in.jsonl.gz", b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'),
    ],
)
def test_where_no_row_can_be_read_that_is_said(tmp_path: Path, name: str, content: bytes) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    runs = [
        [c, source, *flags(c, tmp_path), "--output", tmp_path / "o.parquet"] for c in ("dedup", "filter")
    ]
    for arguments in [*runs, ["split", source]]:
        done = clair(*arguments)
        assert done.returncode == 1, arguments
        assert "rows can be read; the first: " in done.stderr


def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.jsonl")  # nobody writes, so reading would wait for ever
    done = clair("filter", tmp_path / "in.jsonl", "--where", "1=1", "--output", tmp_path / "o.jsonl")
    assert done.returncode == 1
    assert "is a pipe or a device" in done.stderr


def test_an_empty_name_is_not_the_folder_one_is_in(tmp_path: Path) -> None:
    pairs(tmp_path / "in.parquet", 2)
    done = clair("stats", "", cwd=tmp_path)
    assert done.returncode == 2
    assert "the name of a file to read is empty" in done.stderr


def test_a_cell_that_is_too_long_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clair_apo import files

    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "in.csv").write_text(f"a,b\n1,{'x' * (1 << 21)}\n2,y\n")
    (tmp_path / "in.jsonl").write_text('{"a": "' + "x" * (1 << 21) + '"}\n{"a": "2"}\n')
    for name in ("in.csv", "in.jsonl"):
        bad, good = files.read_rows(tmp_path / name)
        assert isinstance(bad, files.BadRow)
        assert "longer than 1 MiB, the most that is read" in bad.reason
        assert isinstance(good, dict)
        assert good["a"] == "2"
