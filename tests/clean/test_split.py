"""`split`: no prompt on both sides, the same side whatever the file."""

from __future__ import annotations

import hashlib
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clair_apo.clean import convert, split
from clair_apo.errors import ClairError, UsageError
from cli import clair


def parts(found: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    train, test = (pq.read_table(found["outputs"][side]).to_pylist() for side in ("train", "test"))
    return train, test


def normal(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def hash_side(prompt: str, seed: int) -> bool:
    """The plain rule: the first half of the hashes of seed and prompt is the test part."""
    return hashlib.blake2b(f"{seed}\n{prompt}".encode(), digest_size=8).digest()[0] < 128


PROMPT = st.text(alphabet="aAbB \t\n éé!", min_size=0, max_size=6)


@settings(max_examples=40, deadline=None)
@given(prompts=st.lists(PROMPT, min_size=1, max_size=40), seed=st.integers(0, 3), group=st.integers(1, 9))
def test_no_leak_and_nothing_lost(prompts: list[str], seed: int, group: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in.parquet"
        rows = pa.table({"prompt": prompts, "n": list(range(len(prompts)))})
        pq.write_table(rows, source, row_group_size=group)
        sides = {hash_side(normal(p), seed) for p in prompts}
        if len(sides) < 2:  # all on one side: neither file is written
            with pytest.raises(ClairError, match="no row would be in the"):
                split(source, 0.5, seed)
            assert [p.name for p in Path(name).iterdir()] == ["in.parquet"]
            return
        train, test = parts(split(source, 0.5, seed))
        assert not {normal(r["prompt"]) for r in train} & {normal(r["prompt"]) for r in test}
        for part in (train, test):
            assert part == sorted(part, key=lambda r: r["n"])
        assert sorted(r["n"] for r in train + test) == list(range(len(prompts)))
        assert all(hash_side(normal(r["prompt"]), seed) for r in test)


def many(path: Path, numbers: list[int]) -> Path:
    prompts = [f"What is {n} and {n}?" for n in numbers]
    pq.write_table(pa.table({"prompt": prompts, "response": ["r"] * len(numbers)}), path)
    return path


def test_the_same_side_whatever_the_file(tmp_path: Path) -> None:
    a = split(many(tmp_path / "a.parquet", list(range(3000))), 0.1, 5)
    b = split(many(tmp_path / "b.parquet", list(range(4000, 1000, -2))), 0.1, 5)
    test_a, test_b = ({r["prompt"] for r in parts(x)[1]} for x in (a, b))
    train_a, train_b = ({r["prompt"] for r in parts(x)[0]} for x in (a, b))
    assert not test_a & train_b
    assert not test_b & train_a
    assert abs(len(test_a) / 3000 - 0.1) < 0.02
    other = {r["prompt"] for r in parts(split(tmp_path / "a.parquet", 0.1, 6))[1]}
    assert len(other & test_a) < 60
    larger = {r["prompt"] for r in parts(split(tmp_path / "a.parquet", 0.2, 5))[1]}
    assert test_a < larger


def test_the_same_side_whatever_the_shape(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "pairs_revision.parquet"
    want = None
    for shape in ("trl", "trl-text", "clair32k", "unpaired"):
        path = tmp_path / f"{shape}.parquet"
        convert(source, shape, path)
        found = split(path, 0.2, 1)
        assert found["train"] + found["test"] == found["rows_in"]
        prompts = {
            p if isinstance(p, str) else p[0]["content"] for p in (r["prompt"] for r in parts(found)[1])
        }
        want = want or prompts
        assert prompts == want
    assert want


def test_lines_stay_lines(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "clair_transcripts.jsonl"
    done = clair("split", source, "--test", "0.3", "--output-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    written = [Path(found["outputs"][side]).read_bytes().splitlines() for side in ("train", "test")]
    assert [len(w) for w in written] == [found["train"], found["test"]]
    assert sorted(written[0] + written[1]) == sorted(source.read_bytes().splitlines())
    assert found["outputs"]["test"] == str(tmp_path / "clair_transcripts.test.jsonl")


def test_rows_without_a_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "a": n} for n in range(40)]
    rows[7]["prompt"] = None
    (tmp_path / "in.jsonl").write_text("broken\n" + "".join(json.dumps(r) + "\n" for r in rows))
    found = split(tmp_path / "in.jsonl", 0.5)
    assert (found["rows_in"], found["rows_out"], found["skipped"]) == (41, 39, 2)
    reasons = {k: (v["rows"], v["first_row"]) for k, v in found["skipped_reasons"].items()}
    assert reasons == {"unreadable": (1, 0), "no_prompt": (1, 8)}


def test_transcripts_have_their_prompts_inside(tmp_path: Path) -> None:
    talk = "\n\nHuman: {n}?\n\nAssistant: {a}"
    rows = [{"chosen": talk.format(n=n, a="x"), "rejected": talk.format(n=n, a="y")} for n in range(30)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows * 2))
    found = split(tmp_path / "in.jsonl", 0.4)
    train, test = (
        {json.loads(line)["chosen"] for line in Path(found["outputs"][side]).read_text().splitlines()}
        for side in ("train", "test")
    )
    assert len(train) + len(test) == 30


def test_mistakes(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "prompts_llama3_8b.parquet"
    with pytest.raises(ClairError, match="no row would be in the test part"):
        split(source, 1e-9, output_dir=tmp_path)
    with pytest.raises(ClairError, match="no row would be in the train part"):
        split(source, 1 - 1e-9, output_dir=tmp_path)
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(source, 1.0, output_dir=tmp_path)
    with pytest.raises(ClairError, match="no column 'nope'; it has prompt, response"):
        split(source, 0.5, output_dir=tmp_path, prompt_column="nope")
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "t.parquet")
    with pytest.raises(ClairError, match="has no prompts"):
        split(tmp_path / "t.parquet", 0.5)
    with pytest.raises(UsageError, match="--output-dir is needed"):
        split(f"{tmp_path}/*.parquet", 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]
    done = clair("split", source, "--test", "2")
    assert done.returncode == 2
    shown = clair("split", source, "--test", "0.2", "--output-dir", tmp_path).stdout
    assert "prompts_llama3_8b.train.parquet" in shown
