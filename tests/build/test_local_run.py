"""build-pairs with models in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import build, clair, failures, rows, texts, write_prompts

pytest.importorskip("torch")
pytest.importorskip("transformers")
from llm.test_local import save_tiny


def test_a_folder_answers_and_revises(tmp_path: Path) -> None:
    """A random model: what it says is noise, but every row is accounted for, the same each time."""
    name = f"local:{save_tiny(tmp_path / 'tiny')}"
    prompts = [f"question {n} {'long ' * (n * 3)}" for n in range(9)] + ["x" * 1000]
    source = write_prompts(tmp_path / "in.parquet", prompt=prompts)
    flags = ["--model", name, "--reviser", name, "--template", "answer-only"]
    flags += ["--model-max-tokens", 12, "--max-tokens", 12, "--model-temperature", 1]
    first = build(source, tmp_path / "a.parquet", *flags)
    again = build(source, tmp_path / "b.parquet", *flags)
    assert first["rows_in"] == 10 == sum(first[k] for k in ("kept", "unchanged", "filtered", "failed"))
    assert first["failures"] == again["failures"]
    assert texts(tmp_path / "a.parquet") == texts(tmp_path / "b.parquet")
    kinds = {row["kind"] for row in failures(tmp_path / "a.parquet")}
    assert "context_length" in kinds
    assert kinds <= {"context_length", "truncated", "empty"}
    assert all(row["chosen_model"] == "tiny" for row in rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--reviser", "local:/nowhere"], 1, "/nowhere"),
        (["--reviser", "local:smollm2", "--reviser-url", "http://x/v1"], 2, "no meaning"),
        (["--reviser", "local:smollm2", "--reasoning-effort", "low"], 2, "takes no reasoning_effort"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_hangs(
    tmp_path: Path, flags: list[str], status: int, words: str
) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["a", "b"], response=["x.", "y."])
    done = clair("build-pairs", "--input", source, "--output", tmp_path / "p.parquet", *flags)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
