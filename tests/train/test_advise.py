"""Which objective a table's evidence picks: on real ratings, and on made tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clair_apo.errors import ClairError
from clair_apo.train.advise import advise, model_name
from cli import clair


def table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.parquet"
    names = {name: None for row in rows for name in row}
    full = [{"chosen": "a", "rejected": "b", **names, **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(full), path)
    return path


def origin(method: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"method": method, "chosen_model": chosen, "rejected_model": rejected, **more}


def test_real_ratings(shared_data: Path) -> None:
    path = shared_data / "answers_rated.parquet"
    found = advise(path, "google/Gemma-2b-it/")
    assert (found.objective, found.kind, found.rows) == ("apo-zero", "ratings", 200)
    rows = {e.objective: e.rows for e in found.evidence}
    completions = pq.read_table(path)["completions"].to_pylist()
    best = [max(c["overall_score"] for c in answers) for answers in completions]
    own = [next(c["overall_score"] for c in a if "gemma-2b-it" in c["model"].lower()) for a in completions]
    above = sum(b > o for b, o in zip(best, own, strict=True))
    assert rows == {"apo-zero": above, None: 200 - above}


@pytest.mark.parametrize("name", ["pairs_revision", "pairs_stronger_preferred"])
def test_real_pairs_without_evidence_are_refused(shared_data: Path, name: str) -> None:
    done = clair("advise", shared_data / f"{name}.parquet", "--model", "Meta-Llama-3-8B-Instruct", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--objective apo-zero" in done.stderr
    assert "`chosen_model`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("row", "objective"),
    [
        (origin("clair", "gpt-4", "org/M"), "apo-zero"),
        (origin("stronger_preferred", "gpt-4", "/models/m/"), "apo-zero"),
        (origin("on_policy_judge", "m", "m"), "apo-zero"),
        (origin("off_policy_judge", "phi", "vicuna"), "apo-down"),
        (origin("x", "phi", "m", score_chosen=2.0, score_rejected=4.0), "apo-down"),
        (origin("x", "phi", "m", score_chosen="5", score_rejected="4"), "apo-zero"),
        (origin("clair", "gpt-4", "m", judge_winner="chosen"), "apo-zero"),
        (
            origin("clair", "gpt-4", "m", judge_winner="rejected", score_chosen=2, score_rejected=1),
            "apo-down",
        ),
    ],
)
def test_each_kind_of_evidence(tmp_path: Path, row: dict[str, Any], objective: str) -> None:
    assert advise(table(tmp_path, [row]), "M").objective == objective


@pytest.mark.parametrize(
    "row",
    [
        origin("clair", "m", "m"),  # its own reviser: nobody stronger
        origin("clair", "gpt-4", "another"),
        origin("off_policy_judge", "m", "phi"),
        {"method": "clair"},
        {"completions": [{"model": "phi", "overall_score": 3.0}]},
        {"completions": [{"model": "m", "overall_score": float("nan")}]},
    ],
)
def test_rows_that_say_nothing(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(ClairError, match="nothing in it says"):
        advise(table(tmp_path, [row]), "m")


def test_ratings_go_before_provenance_unless_they_are_fewer(tmp_path: Path) -> None:
    rated = origin("clair", "gpt-4", "m", score_chosen=1.0, score_rejected=2.0)
    assert advise(table(tmp_path, [rated] * 3), "m").kind == "ratings"
    with pytest.raises(ClairError, match="the provenance of more rows for apo-zero") as error:
        advise(table(tmp_path, [rated, origin("clair", "gpt-4", "m")]), "m")
    assert "50.0%" in str(error.value)


def test_one_kind_that_speaks_for_both_is_refused(tmp_path: Path) -> None:
    both = [origin("clair", "gpt-4", "m"), origin("off_policy_judge", "phi", "vicuna")]
    with pytest.raises(ClairError, match="provenance speak for both"):
        advise(table(tmp_path, both), "m")
    assert advise(table(tmp_path, [both[0], *both]), "m").objective == "apo-zero"


def test_what_the_command_prints(tmp_path: Path) -> None:
    path = table(tmp_path, [origin("clair", "gpt-4", "org/m")] * 3 + [origin("clair", "gpt-4", "n")])
    shown = clair("advise", path, "--model", "m")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0] == "apo-zero, by provenance"
    assert "3   75.0%  another model's answer stands above the model's own" in shown.stdout
    document = json.loads(clair("advise", path, "--model", "m", "--json").stdout)
    assert document["objective"] == "apo-zero"
    assert [e["rows"] for e in document["evidence"]] == [3]


def test_names_of_models() -> None:
    same = ("org/Name-7B", "/models/name-7b/", "local:Name-7b", "NAME-7B")
    assert {model_name(name) for name in same} == {"name-7b"}


def test_likelihoods_stand_beside_the_advice_and_decide_nothing(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from clair_apo.train import naive
    from clair_apo.train.tokens import tokenise
    from trl_step import tiny_model

    model = tmp_path / "tiny"
    tiny_model(model)
    texts = [("It is 1 .", "It is 2 and 3 ."), ("What", "one ? 4"), ("5", "6 7")]
    more = [{"prompt": "What is it ?", "chosen": c, "rejected": r} for c, r in texts]
    path = table(tmp_path, [{**origin("clair", "gpt-4", str(model)), **row} for row in more])
    shown = clair("advise", path, "--model", model, "--likelihoods", "9", "--json")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert document["objective"] == "apo-zero"
    pairs = tokenise(path, AutoTokenizer.from_pretrained(model)).pairs
    each = [pairs[i] for i in range(3)]
    sides = naive.answer_logps(AutoModelForCausalLM.from_pretrained(model), each)
    counts = [[len(pair.chosen) for pair in each], [len(pair.rejected) for pair in each]]
    chosen, rejected = (
        [float(total) / n for total, n in zip(side, count, strict=True)]
        for side, count in zip(sides, counts, strict=True)
    )
    assert document["likelihoods"] == {
        "pairs": 3,
        "chosen": pytest.approx(sum(chosen) / 3, rel=1e-5),
        "rejected": pytest.approx(sum(rejected) / 3, rel=1e-5),
        "chosen_likelier": pytest.approx(sum(a > b for a, b in zip(chosen, rejected, strict=True)) / 3),
    }
    assert (
        "a diagnosis and no evidence"
        in clair("advise", path, "--model", model, "--likelihoods", "2").stdout
    )
