"""A dataset for the Hub: the folder as `datasets` reads it, and what its card says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clair_apo.clean import hub
from clair_apo.clean.conversion import convert
from clair_apo.errors import ClairError, UsageError
from clair_apo.tables import dropped_schema, pair_schema
from cli import clair

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pair(number: int, method: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{method} {number}",
        "prompt": [{"role": "user", "content": f"{number}?"}],
        "chosen": [{"role": "assistant", "content": "better words"}],
        "rejected": [{"role": "assistant", "content": "words"}],
        "method": method,
        "chosen_model": "strong",
        "rejected_model": "own",
        "jaccard": 0.5,
        "levenshtein": 7,
        "flags": [],
        **more,
    }


VERDICTS = [
    {"judge": "j", "template": "t", "shown_first": side, "winner": "chosen", "words": "[[A]]"}
    for side in ("chosen", "rejected")
]
ROWS = [
    pair(0, "clair", jaccard=0.25, judge_winner="chosen", judge_verdicts=VERDICTS, template="paper@1"),
    pair(1, "clair", jaccard=0.75, judge_winner="tie", judge_verdicts=VERDICTS, flags=["not_verified"]),
    pair(0, "stronger_preferred", chosen_model="evil`|<b>\n# x", extra={"source": "s"}),
]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Tables of two methods as build-pairs leaves them, one of them of an earlier version."""
    folder = tmp_path / "in"
    folder.mkdir()
    old = pa.Table.from_pylist(ROWS[:2], schema=pair_schema())
    pq.write_table(old.drop_columns(["rounds", "chosen_rating"]), folder / "p.clair.parquet")
    schema = pair_schema(pa.struct([("source", pa.string())]))
    pq.write_table(pa.Table.from_pylist(ROWS[2:], schema=schema), folder / "p.stronger-preferred.parquet")
    reason = {"reason": "unchanged"}
    dropped = pa.Table.from_pylist([{**pair(2, "clair"), **reason}], schema=dropped_schema())
    pq.write_table(dropped, folder / "p.clair.dropped.parquet")
    return folder


def test_datasets_reads_the_folder_with_every_pair_and_its_origin(tables: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    out = tmp_path / "mine"
    done = clair("convert", tables / "p.*.parquet", "--to", "hub", "--output", out, "--license", "cc0-1.0")
    assert done.returncode == 0, done.stderr
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        "README.md",
        "data/train-00000-of-00001.parquet",
    ]
    found = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert [row["method"] for row in found] == ["clair", "clair", "stronger_preferred"]
    assert [row["extra"] for row in found] == [None, None, {"source": "s"}]
    assert found[1]["judge_verdicts"][0]["judge"] == "j"


def test_the_card_tells_recipe_models_counts_contrast_and_licence(tables: Path, tmp_path: Path) -> None:
    told = convert(tables, "hub", tmp_path / "mine", license="cc0-1.0")
    assert (told["rows_in"], told["pairs"], told["skipped"]) == (3, 3, 0)
    text = (tmp_path / "mine" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert (front["license"], front["size_categories"]) == ("cc0-1.0", ["n<1K"])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    for line in (
        "- `clair`, 2 pairs: chosen is a stronger model's revision",
        "  - template of the reviser `paper@1` 1",
        "  - judged by `j`\n  - the judges' winner: `chosen` 1, `tie` 1\n  - flags: `not_verified` 1",
        "  - chosen by `strong`\n  - rejected by `own`",
        "| | `clair` | `stronger_preferred` |",
        "| pairs | 2 | 1 |",
        "| Jaccard, words | 0.500 | 0.500 |",
        "| Levenshtein, characters | 7 | 7 |",
        "| edit ratio | – | – |",
        "  - chosen by `evil'''b'␊# x`",
        "`cc0-1.0`. The prompts are under the licence",
    ):
        assert line in body
    convert(tables / "p.clair.parquet", "hub", tmp_path / "other")
    other = (tmp_path / "other" / "README.md").read_text()
    assert "license" not in yaml.safe_load(other.split("---\n")[1])
    assert "None is set" in other


def test_a_table_that_does_not_name_everything(tables: Path, tmp_path: Path) -> None:
    nameless = [{**verdict, "judge": None} for verdict in VERDICTS]
    table = pa.Table.from_pylist(
        [{**ROWS[0], "method": None, "judge_verdicts": nameless}, {**ROWS[1], "flags": None}],
        schema=pa.schema([item.with_nullable(True) for item in pair_schema()]),
    )
    pq.write_table(table, tmp_path / "t.parquet")
    hub.write_folder(tmp_path / "t.parquet", tmp_path / "out", licence="mit\n---\nlicense: other")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- `unknown`, 1 pairs: a method of its maker's own." in card
    assert "judged by `unknown`" in card
    assert yaml.safe_load(card.split("\n---\n")[0][4:])["license"] == "mit\u240a---\u240alicense: other"


def test_nothing_of_others_is_mixed_in_or_overwritten(tables: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    convert(tables, "hub", out)
    with pytest.raises(UsageError, match=r"holds README\.md; name a new folder"):
        convert(tables, "hub", out)
    with pytest.raises(UsageError, match=r"holds p\.clair"):
        convert(tables / "p.clair.parquet", "hub", tables)
    with pytest.raises(ClairError, match="has dropped"):
        convert(tables / "p.clair.dropped.parquet", "hub", tmp_path / "new")
    pq.write_table(pa.table({"chosen": ["a"], "rejected": ["b"]}), tmp_path / "other.parquet")
    with pytest.raises(ClairError, match="no table of `clair-apo build-pairs`"):
        convert(tmp_path / "other.parquet", "hub", tmp_path / "new")
    with pytest.raises(UsageError, match="go with --to hub"):
        convert(tables, "trl", tmp_path / "x.parquet", push_to_hub="me/mine")
    assert not (tmp_path / "new").exists()


def test_a_push_sends_what_was_written(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, Any] = {}

    class Api:
        def create_repo(self, repo: str, **settings: Any) -> None:
            calls["repo"] = repo, settings["repo_type"], settings["private"]

        def upload_folder(self, **settings: Any) -> None:
            calls.update(settings)
            if settings["repo_id"] == "me/refused":
                raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    convert(tables, "hub", tmp_path / "mine", push_to_hub="me/mine")
    assert calls["repo"] == ("me/mine", "dataset", True)
    assert (calls["repo_id"], calls["repo_type"], calls["folder_path"]) == (
        "me/mine",
        "dataset",
        tmp_path / "mine",
    )
    assert all((tmp_path / "mine" / name).is_file() for name in calls["allow_patterns"])
    assert "load_dataset('me/mine', split=\"train\")" in (tmp_path / "mine" / "README.md").read_text()
    with pytest.raises(ClairError, match=r"did not take the pairs: no network\. They lie in"):
        convert(tables, "hub", tmp_path / "refused", push_to_hub="me/refused")
    assert (tmp_path / "refused" / "README.md").is_file()
