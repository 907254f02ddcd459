"""The written table in the hands of those it is for: `datasets`, and a step of TRL's DPOTrainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cli import build
from loopback import Answer, Loopback, marked
from trl_step import first_loss, tiny_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with awkward columns carried along: names that trainers look for themselves."""
    import json

    folder = tmp_path_factory.mktemp("pairs")
    source = folder / "in.jsonl"
    with source.open("w") as file:
        for number in range(8):
            row: dict[str, Any] = {
                "prompt": f"What is {number} and one?",
                "response": f"It is {number}.",
                "messages": [{"role": "user", "content": "loose"}],
                "tools": None,
                "completion": "x",
                "label": True,
                "images": ["a"],
                "score": 0.5,
            }
            file.write(json.dumps(row) + "\n")

    def behave(body: dict[str, Any], n: int) -> Answer:
        said = body["messages"][0]["content"]
        number = int(said.split("What is ")[1].split()[0])
        return Answer(marked(f"It is {number + 1}."))

    with Loopback(behave) as server:
        summary = build(source, folder / "pairs.parquet", "--reviser", "m", "--reviser-url", server.url)
    assert summary["kept"] == 8
    return folder / "pairs.parquet"


def test_datasets_loads_it(table: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset("parquet", data_files=str(table), cache_dir=str(tmp_path))["train"]
    assert loaded.num_rows == 8
    assert loaded[0]["chosen"] == [{"role": "assistant", "content": "It is 1."}]
    assert loaded[0]["extra"]["label"] is True


def test_a_step_of_trl_on_the_file_as_it_is(table: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("torch")
    rows = datasets.load_dataset("parquet", data_files=str(table), cache_dir=str(tmp_path))["train"]
    folder = tmp_path / "model"  # TRL loads the reference anew, so the model needs a place
    tokenizer = tiny_model(folder)
    found = first_loss("DPO", rows, folder, tokenizer, "apo_zero", tmp_path / "out")
    assert found == pytest.approx(1.0, abs=1e-3)  # both APO forms begin at 1 as TRL writes them
