"""Pairs in the shapes of others: texts stay, and those they are for take them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clair_apo.clean.conversion import convert
from clair_apo.errors import ClairError, UsageError
from cli import clair
from trl_step import first_loss, tiny_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
PAIRS = ["answers_rated.parquet", "pairs_revision.parquet", "pairs_stronger_preferred.parquet"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def converted(source: Path, to: str) -> list[dict[str, Any]]:
    output = source.with_name(f"out.{to}.parquet")
    convert(source, to, output)
    found: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_round_trips_keep_texts(shared_data: Path, tmp_path: Path, name: str) -> None:
    first = convert(shared_data / name, "trl", tmp_path / "a.parquet")
    assert (first["rows_in"], first["pairs"], first["skipped"]) == (200, 200, 0)
    want = pq.read_table(tmp_path / "a.parquet")
    for step, to in enumerate(["clair32k", "trl", "trl-text", "trl"]):
        source = tmp_path / f"{'abcd'[step]}.parquet"
        convert(source, to, tmp_path / f"{'abcd'[step + 1] if step < 3 else 'e'}.parquet")
    assert pq.read_table(tmp_path / "c.parquet").equals(want)
    assert pq.read_table(tmp_path / "e.parquet").equals(want)


def test_what_each_shape_is(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        [
            {
                "prompt": "Why?",
                "chosen": [assistant("So.")],
                "rejected": [assistant("No.")],
                "rationale": "r",
            }
        ],
    )
    ask = [user("Why?")]
    assert converted(source, "trl") == [
        {"prompt": ask, "chosen": [assistant("So.")], "rejected": [assistant("No.")]}
    ]
    assert converted(source, "trl-text") == [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}]
    assert converted(source, "clair32k") == [
        {
            "prompt": "Why?",
            "chosen": [*ask, assistant("So.")],
            "rejected": [*ask, assistant("No.")],
            "rational": "r",
        }
    ]
    assert converted(source, "unpaired") == [
        {"prompt": ask, "completion": [assistant("So.")], "label": True},
        {"prompt": ask, "completion": [assistant("No.")], "label": False},
    ]


TALK = [
    {"role": "system", "content": "Be short."},
    user("One?"),
    assistant("1"),
    user("Two?"),
]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": TALK, "chosen": "2", "rejected": "3"}, TALK),
        ({"prompt": "Two?", "chosen": [*TALK, assistant("2")], "rejected": [*TALK, assistant("3")]}, TALK),
        ({"chosen": [*TALK, assistant("2")], "rejected": [*TALK, assistant("3")]}, TALK),
        (
            {"prompt": "Other.", "chosen": [*TALK, assistant("2")], "rejected": [*TALK, assistant("3")]},
            [user("Other.")],
        ),
        (
            {
                "chosen": "\n\nHuman: One?\n\nAssistant: 1\n\nHuman: Two?\n\nAssistant: 2",
                "rejected": "\n\nHuman: One?\n\nAssistant: 1\n\nHuman: Two?\n\nAssistant: 3",
            },
            TALK[1:],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "One?"},
                    {"from": "gpt", "value": "1"},
                    user("Two?"),
                ],
                "chosen": {"from": "gpt", "value": "2"},
                "rejected": {"from": "gpt", "value": "3"},
            },
            TALK[1:],
        ),
        (
            {
                "input": {"messages": TALK},
                "preferred_output": [assistant("2")],
                "non_preferred_output": [assistant("3")],
            },
            TALK,
        ),
        (
            {
                "instruction": "Two?",
                "completions": [
                    {"response": "3", "overall_score": 1},
                    {"response": "2", "overall_score": 5},
                ],
            },
            [user("Two?")],
        ),
    ],
)
def test_prompts_of_every_shape(tmp_path: Path, row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    source = write(tmp_path / "in.jsonl", [row])
    want = [{"prompt": prompt, "chosen": [assistant("2")], "rejected": [assistant("3")]}]
    assert converted(source, "trl") == want
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    assert converted(tmp_path / "in.parquet", "trl") == want
    # The conversation is in both answers there, so no turn is lost on the way.
    convert(source, "clair32k", tmp_path / "c.parquet")
    assert converted(tmp_path / "c.parquet", "trl") == want


def test_turns_as_text_have_their_roles(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": TALK, "chosen": "2", "rejected": "3"}])
    (row,) = converted(source, "trl-text")
    assert row["prompt"] == "system: Be short.\n\nuser: One?\n\nassistant: 1\n\nuser: Two?"


def test_rows_without_a_pair_are_counted_and_named(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        [
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt": "p", "chosen": None, "rejected": "b"},
            {"prompt": None, "chosen": "a", "rejected": "b"},
            {"prompt": "p"},
        ],
    )
    with source.open("a") as file:
        file.write("broken\n")
    done = clair("convert", source, "--to", "unpaired", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {k: found[k] for k in ("rows_in", "pairs", "rows_out", "skipped")} == {
        "rows_in": 5,
        "pairs": 1,
        "rows_out": 2,
        "skipped": 4,
    }
    first = {reason: (s["rows"], s["first_row"]) for reason, s in found["skipped_reasons"].items()}
    assert first == {"null": (1, 1), "no_prompt": (1, 2), "missing_column": (1, 3), "unreadable": (1, 4)}
    assert found["output"] == str(tmp_path / "in.unpaired.parquet")
    shown = clair("convert", source, "--to", "unpaired").stdout
    assert "the row has no prompt; first: row 2" in shown
    assert "two rows each" in shown


def test_jsonl_is_every_row_as_it_is(shared_data: Path, tmp_path: Path) -> None:
    done = convert(shared_data / "prompts_llama3_8b.parquet", "jsonl", tmp_path / "out.jsonl.gz")
    assert (done["rows_in"], done["rows_out"], done["pairs"]) == (200, 200, None)
    found = pa.table(pq.read_table(shared_data / "prompts_llama3_8b.parquet")).to_pylist()
    import gzip

    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as file:
        assert [json.loads(line) for line in file] == found


def test_names_beside_the_input(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert convert(source, "trl")["output"] == str(tmp_path / "in.trl.parquet")
    assert convert(tmp_path / "in.trl.parquet", "jsonl")["output"] == str(tmp_path / "in.trl.jsonl")
    folder = tmp_path / "parts"
    folder.mkdir()
    source.rename(folder / "in.jsonl")
    assert convert(folder, "trl")["output"] == str(tmp_path / "parts.trl.parquet")
    with pytest.raises(UsageError, match="--output is needed"):
        convert(f"{folder}/*.jsonl", "trl")
    with pytest.raises(UsageError, match="also the input"):
        convert(folder / "in.jsonl", "jsonl")
    with pytest.raises(UsageError, match=r"--to jsonl writes \.jsonl"):
        convert(folder / "in.jsonl", "jsonl", tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="not one of"):
        convert(folder / "in.jsonl", "csv")
    with pytest.raises(ClairError, match="no such file"):
        convert(tmp_path / "nope.parquet", "trl")


@pytest.mark.parametrize("kind", [".parquet", ".jsonl"])
def test_a_table_without_pairs(shared_data: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"in{kind}"
    if kind == ".parquet":
        source = shared_data / "prompts_llama3_8b.parquet"
    else:
        write(source, [{"prompt": "p", "response": "r"}])
    with pytest.raises(ClairError, match=r"holds no preference pairs\. Its columns are: prompt, response"):
        convert(source, "trl", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny model's place, and its tokenizer."""
    pytest.importorskip("trl")
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model(folder)
    return folder, tokenizer


@pytest.mark.parametrize(
    ("to", "loss"), [("trl", "apo_zero"), ("trl-text", "apo_zero"), ("unpaired", "apo_zero_unpaired")]
)
def test_trl_trains_on_it(tmp_path: Path, model: tuple[Path, Any], to: str, loss: str) -> None:
    datasets = pytest.importorskip("datasets")
    folder, tokenizer = model
    rows = [
        {"prompt": f"What is {n} and {n} ?", "chosen": f"It is {n} .", "rejected": f"{n} ."}
        for n in range(8)
    ]
    source = write(tmp_path / "in.jsonl", rows)
    convert(source, to, tmp_path / "out.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert loaded.num_rows == (16 if to == "unpaired" else 8)
    kind = "KTO" if to == "unpaired" else "DPO"
    found = first_loss(kind, loaded, folder, tokenizer, loss, tmp_path / "run")
    assert found == pytest.approx(0.5 if to == "unpaired" else 1.0, abs=1e-3)


def test_datasets_loads_the_published_shape(shared_data: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    convert(shared_data / "pairs_revision.parquet", "clair32k", tmp_path / "c.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "c.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert loaded.column_names == ["prompt", "chosen", "rejected", "rational"]
    assert loaded[0]["chosen"][0] == {"role": "user", "content": loaded[0]["prompt"]}
