"""The command line: help, exit codes, config files, and words where something is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import clair_apo
from clair_apo import cli
from clair_apo.build import build_pairs
from clair_apo.errors import UsageError
from cli import COMMAND, clair, environment, write_prompts
from loopback import Answer, Loopback, marked


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "in.parquet", prompt=["a?"], response=["An answer."])


def test_help_and_version_are_quick_and_import_nothing_heavy() -> None:
    for arguments in (
        ["--help"],
        ["--version"],
        ["build-pairs", "--help"],
        ["stats", "--help"],
        ["diff", "--help"],
        ["templates", "--help"],
    ):
        done = clair(*arguments)
        assert done.returncode == 0
        assert "example" in done.stdout or arguments == ["--version"]
    best = min(_seconds("--help") for _ in range(5))
    # The bound is 0.3 s; this one only catches an import of something heavy on a busy machine.
    assert best < 1.5
    import subprocess
    import sys

    code = (
        "import sys; from clair_apo.cli import main\ntry: main(['build-pairs', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('pyarrow', 'torch', 'polars', 'httpx', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def _seconds(*arguments: str) -> float:
    begun = time.monotonic()
    clair(*arguments)
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "invalid choice"),
        (["build-pairs"], "--input"),
        (["build-pairs", "--input", "IN", "--frobnicate"], "--frobnicate"),
        (["build-pairs", "--input", "IN", "--concurrency", "0"], "at least 1"),
        (["build-pairs", "--input", "IN", "--minimality", "0.5"], "not a band"),
        (["build-pairs", "--input", "IN", "--drop", "bad_flag"], "known are"),
        (["build-pairs", "--input", "IN", "--extra-body", "[1]"], "JSON object"),
        (["build-pairs", "--input", "IN", "--extra-body", '{"model": "x"}'], "cannot be set"),
        (["build-pairs", "--input", "IN", "--fresh", "--continue"], "--fresh"),
        (["build-pairs", "--input", "IN", "--model", "m"], "--reviser"),
        (
            ["build-pairs", "--input", "IN", "--reviser", "m", "--template", "nope"],
            "no such template",
        ),
        (["build-pairs", "--input", "IN", "--reviser", "m", "--reviser-url", "nope"], "not a URL"),
        (
            [
                "build-pairs",
                "--input",
                "IN",
                "--reviser",
                "m",
                "--reviser-url",
                "http://x/v1",
                "--reviser-key-env",
                "NOT_SET_ANYWHERE",
            ],
            "NOT_SET_ANYWHERE",
        ),
    ],
)
def test_usage_errors_exit_with_2_and_say_what(source: Path, arguments: list[str], words: str) -> None:
    done = clair(*[str(source) if word == "IN" else word for word in arguments], cwd=source.parent)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "none.parquet"], "none.parquet: no such file"),
        (
            ["--input", "IN", "--prompt-column", "question"],
            "no column 'question'; it has prompt, response",
        ),
        (["--input", "IN", "--output", "nowhere/p.parquet"], "nowhere: no such folder"),
        (["--input", "IN", "--reviser", "gpt-x"], "no endpoint"),
    ],
)
def test_what_stops_a_run_before_it_begins(source: Path, arguments: list[str], words: str) -> None:
    done = clair("build-pairs", *[str(source) if w == "IN" else w for w in arguments], cwd=source.parent)
    assert done.returncode == 1, done.stderr
    assert words in done.stderr


def test_missing_responses_need_a_model(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["a", "b"], response=["x", None])
    done = clair(
        "build-pairs",
        "--input",
        source,
        "--reviser",
        "m",
        "--reviser-url",
        "http://x/v1",
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "1 row has no response" in done.stderr
    assert "--model" in done.stderr


def test_a_url_without_a_name(source: Path) -> None:
    out = source.parent / "p.parquet"
    with Loopback(lambda body, n: Answer(marked("Better.")), models=("one", "two")) as server:
        flags = ["build-pairs", "--input", source, "--output", out, "--reviser-url", server.url]
        done = clair(*flags)
        assert done.returncode == 2
        assert "lists 2 models: one, two" in done.stderr
        server.models = ("only",)
        assert clair(*flags).returncode == 0
        assert server.asked[0].body["model"] == "only"


def test_the_environment_names_the_endpoint(source: Path) -> None:
    with Loopback(lambda body, n: Answer(marked("Better."))) as server:
        done = clair(
            "build-pairs",
            "--input",
            source,
            "--output",
            source.parent / "p.parquet",
            "--reviser",
            "m",
            env={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sk-env-1"},
        )
        assert done.returncode == 0, done.stderr
        assert server.asked[0].headers["Authorization"] == "Bearer sk-env-1"
        assert "1 kept" in done.stdout
        assert "\x1b" not in done.stdout + done.stderr


def test_config_files(source: Path) -> None:
    config = source.parent / "run.yaml"
    out = source.parent / "p.parquet"
    with Loopback(lambda body, n: Answer(marked("Better."))) as server:
        config.write_text(
            json.dumps(
                {
                    "input": str(source),
                    "output": str(out),
                    "reviser": "from-file",
                    "reviser-url": server.url,
                    "max_tokens": 50,
                    "extra_body": {"top_k": 5},
                    "drop": ["leaked_frame"],
                    "quiet": True,
                }
            )
        )
        done = clair("build-pairs", "--config", config, "--max-tokens", 60)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        body = server.asked[0].body
        assert (body["model"], body["max_tokens"], body["top_k"]) == ("from-file", 60, 5)
    for content, words in (
        ("reviserr: x", "unknown key 'reviserr'; the nearest is 'reviser'"),
        ("concurrency: 0", "at least 1"),
        ("fresh: maybe", "neither true nor false"),
        ("- a", "flags by name"),
        ("a: [", "not YAML"),
    ):
        config.write_text(content)
        done = clair("build-pairs", "--config", config, "--input", source)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr


def test_templates_are_listed_and_shown() -> None:
    listed = clair("templates")
    assert "paper@1" in listed.stdout
    assert "answer-only@1" in listed.stdout
    assert "{teacher_reasoning}" in clair("templates", "paper").stdout
    assert json.loads(clair("templates", "--json").stdout)[0]["name"] == "answer-only@1"
    assert clair("templates", "none").returncode == 2


def test_as_a_function(source: Path) -> None:
    out = source.parent / "p.parquet"
    with Loopback(lambda body, n: Answer(marked("Better."))) as server:
        summary = clair_apo.build_pairs(input=source, output=out, reviser="m", reviser_url=server.url)
        assert summary["kept"] == 1
    with pytest.raises(TypeError, match="no flag 'reviserr'; the nearest is 'reviser'"):
        build_pairs(input=source, reviserr="m")
    with pytest.raises(UsageError, match="at least 1"):
        build_pairs(input=source, concurrency=0)
    with pytest.raises(UsageError, match="input is missing"):
        build_pairs()


def test_inside_a_running_loop(source: Path) -> None:
    import asyncio

    async def notebook(url: str) -> int:
        return int(
            clair_apo.build_pairs(
                input=source, output=source.parent / "p.parquet", reviser="m", reviser_url=url
            )["kept"]
        )

    with Loopback(lambda body, n: Answer(marked("Better."))) as server:
        assert asyncio.run(notebook(server.url)) == 1


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"\x1b]0;owned\x07": "x"}) + "\n")
    done = clair("build-pairs", "--input", source, "--reviser", "m")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    done = clair("diff", "a.parquet", "ev\x1b[31mil\u202e.parquet")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr


def test_a_reader_who_has_seen_enough_is_no_failure(tmp_path: Path) -> None:
    import subprocess

    pairs = tmp_path / "p.jsonl"
    row = {"prompt": "p", "chosen": "a b " * 500, "rejected": "a c " * 500}
    pairs.write_text((json.dumps(row) + "\n") * 300)
    command = " ".join([*COMMAND, "diff", str(pairs), "--largest", "300"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "command", [["stats"], ["filter", "--where", "levenshtein < 3", "--output", "out.parquet"]]
)
def test_a_kernel_that_the_machine_lacks(command: list[str], tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.parquet", chosen=["a b"], rejected=["a c"])
    done = clair(*command, "in.parquet", env={"CLAIR_APO_KERNEL": "x87"}, cwd=tmp_path)
    assert done.returncode == 2
    assert "CLAIR_APO_KERNEL names 'x87', which this machine does not have" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


def test_ctrl_c_while_a_class_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python 3.11 gives what a `__set_name__` raises as the cause of a RuntimeError."""

    class Pressed:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    def run(*_: object) -> int:
        try:
            type("Made", (), {"at": Pressed()})
        except KeyboardInterrupt as error:  # as later versions have it
            raise RuntimeError("Error calling __set_name__") from error
        return 0

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["stats"]) == 130
    assert "interrupted" in capsys.readouterr().err
