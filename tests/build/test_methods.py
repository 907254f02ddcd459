"""The four methods from end to end: what each makes of a row, and what the judge adds."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clair_apo
from clair_apo.build.draft import TIE, Answer
from clair_apo.build.methods import BUILT_IN
from clair_apo.build.methods.off_policy_judge import by_rating
from clair_apo.build.options import METHODS
from clair_apo.cli import main
from clair_apo.errors import ClairError, StoppedEarly, UsageError
from cli import ROOT, clair, dropped, failures, rows, start, write_prompts
from loopback import Answer as Said
from loopback import Asked, Loopback, error, marked
from players import Players, always_first, longer, real_players, roles

FOUR = "clair,on-policy-judge,off-policy-judge,stronger-preferred"


def content(row: dict[str, Any], side: str) -> str:
    return str(row[side][0]["content"])


def few(number: int = 3) -> Players:
    """Players for short made-up prompts `Question N?`."""
    prompts = [f"Question {n}?" for n in range(number)]
    return Players(
        samples={p: [f"Answer to {p}", f"Another answer to {p}"] for p in prompts},
        revisions={p: f"Answer to {p} And more." for p in prompts},
        fresh={p: f"All of it, from the start: {p}" for p in prompts},
    )


def build(input: Path, output: Path, *flags: object, status: int = 0) -> dict[str, Any]:
    """The command in this process: its summary, or what it says where it does not end well."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        ended = main(
            ["build-pairs", "--input", str(input), "--output", str(output), "--json", *map(str, flags)]
        )
    assert ended == status, err.getvalue()
    return json.loads(out.getvalue()) if out.getvalue() else {"stderr": err.getvalue()}


def source_of(folder: Path, players: Players, **more: list[Any]) -> Path:
    return write_prompts(folder / "in.parquet", prompt=list(players.samples), **more)


def test_the_names_are_those_of_the_help() -> None:
    assert tuple(BUILT_IN) == METHODS


def test_all_four_of_the_real_prompts_side_by_side(shared_data: Path, tmp_path: Path) -> None:
    """One run of all methods over the real texts, against what each should take of them."""
    players, table = real_players(shared_data)
    pq.write_table(table, tmp_path / "in.parquet")
    out = tmp_path / "pairs.parquet"
    with Loopback(players) as server:
        flags = [*roles(server, "model", "reviser", "stronger", "judge"), "--pick", "rating"]
        told = build(tmp_path / "in.parquet", out, "--method", FOUR, *flags, "--dry-run")
        assert server.asked == []
        summary = build(tmp_path / "in.parquet", out, "--method", FOUR, *flags)
        calls = Counter(item.body["model"] for item in server.asked)
    assert calls["student"] == 400, "sampled answers are shared"
    assert (calls["reviser"], calls["stronger"]) == (200, 200)
    assert told["calls"]["low"] <= summary["calls"] == len(server.asked) <= told["calls"]["high"]
    for name, counts in summary["methods"].items():
        assert counts["rows_in"] == 200
        assert sum(counts[k] for k in ("kept", "unchanged", "filtered", "failed")) == 200, name
        assert len(rows(tmp_path / f"pairs.{name}.parquet")) == counts["kept"]

    found = {
        name: {r["prompt"][0]["content"]: r for r in rows(tmp_path / f"pairs.{name}.parquet")}
        for name in FOUR.split(",")
    }
    for row in table.to_pylist():
        prompt = row["prompt"]
        completions = [answer for answer in row["completions"] if answer["response"].strip()]
        first, second = (answer.strip() for answer in players.samples[prompt])
        expected: dict[str, tuple[str, str] | None] = {
            "clair": (players.revisions[prompt].strip(), first),
            "stronger-preferred": (players.fresh[prompt].strip(), first),
        }
        lengths = len(first), len(second)
        expected["on-policy-judge"] = (
            None
            if lengths[0] == lengths[1]
            else (first, second)
            if lengths[0] > lengths[1]
            else (second, first)
        )
        scores = [answer["overall_score"] for answer in completions]
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        expected["off-policy-judge"] = completions[best]["response"], completions[worst]["response"]
        for name, pair in expected.items():
            if pair is None or pair[0].split() == pair[1].split():
                assert prompt not in found[name]
                continue
            kept = found[name][prompt]
            assert content(kept, "rejected") == pair[1]
            if name != "clair" or content(kept, "chosen") == pair[0]:
                assert content(kept, "chosen") == pair[0]
            else:  # a closing remark of the reviser's is cut, and said
                assert "comment_cut" in kept["flags"]
            assert kept["method"] == name.replace("-", "_")
        rated = found["off-policy-judge"][prompt]
        assert (rated["chosen_rating"], rated["rejected_rating"]) == (max(scores), min(scores))
        assert rated["chosen_model"] == completions[best]["model"]
        assert ("rating_tie" in rated["flags"]) == (
            scores.count(max(scores)) > 1 or scores.count(min(scores)) > 1
        )

    stats = clair("stats", "--json", *(tmp_path / f"pairs.{name}.parquet" for name in FOUR.split(",")))
    assert stats.returncode == 0, stats.stderr
    measured = {next(iter(file["methods"])): file for file in json.loads(stats.stdout)["files"]}
    assert set(measured) == {name.replace("-", "_") for name in METHODS}
    # The paper's ranking: revisions are the most contrastive, by both measures.
    for other in set(measured) - {"clair"}:
        assert measured["clair"]["jaccard"]["mean"] > measured[other]["jaccard"]["mean"]
        assert measured["clair"]["levenshtein_ratio"]["mean"] < measured[other]["levenshtein_ratio"]["mean"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each_method_is_killed_and_repays_nothing(method: str, tmp_path: Path) -> None:
    players = few(30)
    players.delay = 0.15
    answers = [[{"model": m, "response": f"{m} says {p}"} for m in ("a", "bb")] for p in players.samples]
    source = source_of(tmp_path, players, completions=answers)
    wanted = {
        "clair": ("model", "reviser"),
        "on-policy-judge": ("model", "judge"),
        "off-policy-judge": ("judge",),
        "stronger-preferred": ("model", "stronger"),
    }[method]

    def behave(body: dict[str, Any], n: int) -> Said:
        if body["model"] == "student":  # a sample that was lost on its way is drawn anew
            return Said(f"Answer {'n' * n}.", delay=players.delay)
        if body["model"] == "reviser":
            return Said(marked("Better."), delay=players.delay)
        return Said(players.reply(body, n), delay=players.delay)

    out = tmp_path / "pairs.parquet"
    killed = []
    with Loopback(behave) as server:
        flags = ["--method", method, *roles(server, *wanted), "--concurrency", 4]
        for _ in range(2):
            process = start("build-pairs", "--input", source, "--output", out, *flags)
            before = len(server.asked)
            while len(server.asked) < before + 12:
                time.sleep(0.01)
            process.kill()
            killed.append(time.monotonic())
            process.wait()
        summary = build(source, out, *flags)
    draws = 2 if method == "on-policy-judge" else 1
    assert _most_paid(server.asked, killed) <= draws
    assert summary["kept"] == 30
    assert summary["calls_from_ledger"] >= 8
    assert summary["failed"] == 0
    expected = (
        30 * {"clair": 2, "on-policy-judge": 4, "off-policy-judge": 2, "stronger-preferred": 2}[method]
    )
    assert summary["calls"] == expected
    assert all(pair["method"] == method.replace("-", "_") for pair in rows(out))


def _most_paid(asked: list[Asked], killed: list[float]) -> int:
    """The most replies to one request that were on disk, since they had arrived in time."""
    paid = Counter[str]()
    for item in asked:
        kill = next((at for at in killed if at > item.at), float("inf"))
        if item.replied is not None and item.replied < kill - 0.2:
            paid[json.dumps([item.body["model"], item.body["messages"]])] += 1
    return max(paid.values())


def test_a_judge_that_always_says_first_is_detected(tmp_path: Path) -> None:
    players = few(4)
    players.judges["judge"] = always_first
    source, out = source_of(tmp_path, players), tmp_path / "p.parquet"
    with Loopback(players) as server:
        flags = ["--method", "on-policy-judge", *roles(server, "model", "judge")]
        done = clair("build-pairs", "--input", source, "--output", out, *flags)
        assert done.returncode == 0, done.stderr
    assert "WARNING: the judge judge favours the answer that stands first" in done.stdout
    judge = json.loads((tmp_path / "p.run" / "summary.json").read_text())["judge"]
    assert (judge["calls"], judge["ties"]) == (8, 0)
    assert (judge["first_position_share"], judge["position_bias"], judge["biased"]) == (1.0, 1.0, True)
    assert judge["rating_agreement"] is None
    assert rows(out) == []
    left_out = dropped(out)
    assert [row["reason"] for row in left_out] == ["disagreement"] * 4
    assert [v["winner"] for v in left_out[0]["judge_verdicts"]] == ["chosen", "rejected"]
    assert left_out[0]["judge_winner"] == "disagreement"


def test_verify_flags_what_does_not_win_and_keeps_the_words(tmp_path: Path) -> None:
    """A judge for whom one revision is worse, one is better, and one is no different."""
    players = few(4)
    worse, better, same, unchanged = players.samples
    players.revisions[unchanged] = players.samples[unchanged][0]
    verdicts = {worse: -1, better: 1, same: 0}

    def judge(prompt: str, a: str, b: str) -> str:
        preferred = verdicts[prompt] * (len(a) - len(b))  # the revision is the longer one
        return "Seen.\n" + ("[[C]]" if not preferred else "[[A]]" if preferred > 0 else "[[B]]")

    players.judges["judge"] = judge
    source, out = source_of(tmp_path, players), tmp_path / "p.parquet"
    with Loopback(players) as server:
        plain = [*roles(server, "model", "reviser")]
        first = build(source, out, *plain)
        assert "judge" not in first
        flags = [*plain, *roles(server, "judge"), "--verify"]
        summary = build(source, out, *flags)
        assert (summary["calls_from_ledger"], summary["judge"]["calls"]) == (8, 6)
        assert len(server.asked) == 14, "--verify may be added, and pays for the judge alone"
        found = rows(out)
        assert [row["judge_winner"] for row in found] == ["rejected", "chosen", "tie"]
        assert [row["flags"] for row in found] == [["not_verified"], [], ["not_verified"]]
        assert found[1]["judge_verdicts"] == [
            {
                "judge": "judge",
                "template": "pairwise@1",
                "shown_first": side,
                "winner": "chosen",
                "score": None,
                "words": f"Seen.\n[[{mark}]]",
            }
            for side, mark in (("chosen", "A"), ("rejected", "B"))
        ]
        assert summary["flags"] == {"not_verified": 2}
        fewer = build(source, out, *flags, "--drop", "not_verified")
        assert (fewer["kept"], fewer["unchanged"], fewer["filtered"]) == (1, 1, 2)
        assert len(server.asked) == 14
        assert [row["reason"] for row in dropped(out)] == ["not_verified", "not_verified", "unchanged"]
        again = build(source, out, *plain)
        assert rows(out)[0]["judge_winner"] is None
        assert "judge" not in again
        refused = build(
            source, out, *plain, "--judge", "other", "--judge-url", server.url, "--verify", status=2
        )
        assert "judge: judge before, other now" in refused["stderr"]
        assert pq.read_schema(out).equals(pq.read_schema(tmp_path / "p.parquet"))


def test_a_run_folder_of_clair_says_what_it_always_said(tmp_path: Path) -> None:
    """Folders of earlier versions go on: the settings that are compared have the same text."""
    import sqlite3

    source, out = source_of(tmp_path, few()), tmp_path / "p.parquet"
    with Loopback(few()) as server:
        build(source, out, *roles(server, "model", "reviser"))
        with sqlite3.connect(tmp_path / "p.run" / "ledger.sqlite") as db:
            (said,) = db.execute("SELECT value FROM facts WHERE name = 'settings'").fetchone()
    assert list(json.loads(said)) == [
        "method",
        "model",
        "model-url",
        "model-sampling",
        "reviser",
        "reviser-url",
        "sampling",
        "template",
        "minimality",
    ]
    assert json.loads(said)["method"] == "clair"


def test_one_method_fails_and_the_others_go_on(tmp_path: Path) -> None:
    """A judge without a readable word and a broken cell of answers cost their own methods' rows only."""
    players = few(3)
    two = list(players.samples)[1]
    answers = [json.dumps([{"model": m, "response": m, "rating": r} for m, r in (("a", 1), ("b", 2))])] * 3
    answers[0] = "no list"
    said = players.reply

    def behave(body: dict[str, Any], n: int) -> Said:
        if body["model"] == "judge" and two in body["messages"][0]["content"]:
            return Said("It depends.")
        return Said(said(body, n))

    source, out = source_of(tmp_path, players, completions=answers), tmp_path / "p.jsonl"
    with Loopback(behave) as server:
        flags = [
            "--method",
            FOUR,
            "--pick",
            "rating",
            *roles(server, "model", "reviser", "stronger", "judge"),
        ]
        summary = build(source, out, *flags)
        assert {name: counts["failures"] for name, counts in summary["methods"].items()} == {
            "clair": {},
            "on-policy-judge": {"unparsable": 1},
            "off-policy-judge": {"input": 1},
            "stronger-preferred": {},
        }
    failed = rows(tmp_path / "p.on-policy-judge.failures.parquet")
    assert [(row["prompt"], row["stage"], row["tries"]) for row in failed] == [(two, "judge", 2)]
    failed = rows(tmp_path / "p.off-policy-judge.failures.parquet")
    assert [(row["row"], row["stage"]) for row in failed] == [(0, "input")]
    assert "row 0, column 'completions': a text that is no JSON" in failed[0]["message"]
    assert (tmp_path / "p.clair.jsonl").read_text().count("\n") == 3


def test_the_way_to_the_judge_fails_and_is_made_up_for(tmp_path: Path) -> None:
    players = few(3)
    source, out = source_of(tmp_path, players), tmp_path / "p.parquet"
    healed = False

    def behave(body: dict[str, Any], n: int) -> Said:
        if body["model"] == "judge" and not healed:
            return error(503, "busy")
        return Said(players.reply(body, n))

    with Loopback(behave) as server:
        flags = [*roles(server, "model", "reviser", "judge"), "--verify", "--retries", 0]
        first = build(source, out, *flags)
        assert first["failures"] == {"http_5xx": 3}
        assert [row["stage"] for row in failures(out)] == ["judge"] * 3
        healed = True
        before = len(server.asked)
        assert build(source, out, *flags)["kept"] == 3
        assert Counter(item.body["model"] for item in server.asked[before:]) == {"judge": 6}


def test_paid_failures_of_a_judge_are_asked_again_on_request(tmp_path: Path) -> None:
    players = few(2)
    source, out = source_of(tmp_path, players), tmp_path / "p.parquet"
    sane = False
    players.judges["judge"] = lambda *said: longer(*said) if sane else "Well."
    with Loopback(players) as server:
        flags = ["--method", "on-policy-judge", *roles(server, "model", "judge")]
        assert build(source, out, *flags)["failures"] == {"unparsable": 2}
        sane = True
        assert build(source, out, *flags)["failures"] == {"unparsable": 2}
        before = len(server.asked)
        assert build(source, out, *flags, "--retry-failed")["kept"] == 2
        assert Counter(item.body["model"] for item in server.asked[before:]) == {"judge": 4}


def test_a_panel_and_scores(tmp_path: Path) -> None:
    players = few(3)
    players.judges = {"j1": longer, "j2": always_first, "j3": longer}
    source, out = source_of(tmp_path, players), tmp_path / "p.parquet"
    with Loopback(players) as server:
        flags = [*roles(server, "model"), "--method", "on-policy-judge", "--judge-url", server.url]
        summary = build(source, out, *flags, "--judge", "j1,j2,j3")
        assert summary["kept"] == 3
        assert {n: j["position_bias"] for n, j in summary["judge"]["judges"].items()} == {
            "j1": 0.0,
            "j2": 1.0,
            "j3": 0.0,
        }
        assert summary["judge"]["calls"] == 18
        assert [v["judge"] for v in rows(out)[0]["judge_verdicts"]] == ["j1", "j1", "j2", "j2", "j3", "j3"]
        scored = build(source, out, *flags, "--judge", "j1", "--judge-template", "absolute", "--fresh")
    assert scored["judge"]["calls"] == 6
    for row in [*rows(out), *dropped(out)]:
        first, second = (v["score"] for v in sorted(row["judge_verdicts"], key=lambda v: v["shown_first"]))
        assert row["judge_winner"] == ("tie" if first == second else "chosen")
        assert first >= second


def test_given_answers_take_the_place_of_samples(tmp_path: Path) -> None:
    players = few(3)
    prompts = list(players.samples)
    source = source_of(
        tmp_path,
        players,
        response=[f"Given to {p}" for p in prompts],
        other=[f"Also given to {p}" if n else None for n, p in enumerate(prompts)],
    )
    out = tmp_path / "p.parquet"
    with Loopback(players) as server:
        flags = ["--method", "on-policy-judge", "--more-response-columns", "other"]
        refused = build(source, out, *flags, *roles(server, "judge"), status=2)
        assert "1 row has fewer than 2 answers of the model's own" in refused["stderr"]
        build(source, out, *flags, *roles(server, "model", "judge"))
        assert Counter(item.body["model"] for item in server.asked) == {"student": 1, "judge": 6}
    assert [content(row, "rejected") for row in rows(out)] == [f"Given to {p}" for p in prompts]
    assert [content(row, "chosen") for row in rows(out)] == [
        f"Answer to {prompts[0]}",
        *(f"Also given to {p}" for p in prompts[1:]),
    ]
    assert {row["rejected_model"] for row in rows(out)} == {"student"}


def test_answers_of_other_models_in_every_shape(tmp_path: Path) -> None:
    answers = [
        [("x", "Worst.", 1.0), ("y", "Best.", 5.0), ("z", "Middle.", 3.0)],
        [("x", "First best.", 4.0), ("y", "Second best.", 4.0), ("z", "Worst.", 1.0)],
        [("x", "Same.", 2.0), ("y", "Rating.", 2.0), ("z", "All.", 2.0)],
        [("x", "Only one.", 2.0)],
    ]
    prompts = [f"{n}?" for n in range(len(answers))]
    listed = [
        [{"model": m, "response": text, "overall_score": rating} for m, text, rating in row]
        for row in answers
    ]
    pq.write_table(pa.table({"prompt": prompts, "completions": listed}), tmp_path / "uf.parquet")
    as_rating = [[{"model": m, "response": t, "rating": str(r)} for m, t, r in row] for row in answers]
    lines = [json.dumps({"prompt": p, "others": row}) for p, row in zip(prompts, as_rating, strict=True)]
    (tmp_path / "rating.jsonl").write_text("\n".join(lines) + "\n")
    header = "prompt,x,y,z,rx,ry,rz\n"
    cells = [[{m: (t, r) for m, t, r in row}.get(m, ("", "")) for m in "xyz"] for row in answers]
    body = "".join(
        ",".join([p, *(c[0] for c in row), *(str(c[1]) for c in row)]) + "\n"
        for p, row in zip(prompts, cells, strict=True)
    )
    (tmp_path / "columns.csv").write_text(header + body)
    for file, flags in (
        ("uf.parquet", {}),
        ("rating.jsonl", {"answers_column": "others"}),
        ("columns.csv", {"answer_columns": ["x", "y", "z"], "rating_columns": "rx,ry,rz"}),
    ):
        out = tmp_path / file / ".." / f"{file}.out.parquet"
        summary = clair_apo.build_pairs(
            input=tmp_path / file, output=str(out.resolve()), method="off-policy-judge", **flags
        )
        assert (summary["kept"], summary["filtered"], summary["failed"]) == (2, 1, 1), file
        assert summary["calls"] == 0
        kept = rows(out.resolve())
        assert [(content(r, "chosen"), content(r, "rejected")) for r in kept] == [
            ("Best.", "Worst."),
            ("First best.", "Worst."),
        ]
        assert [r["flags"] for r in kept] == [[], ["rating_tie"]]
        assert [(r["chosen_model"], r["rejected_model"]) for r in kept] == [("y", "x"), ("x", "z")]
        shutil.rmtree(tmp_path / f"{file}.out.run")


def test_by_rating_is_the_extremes_of_the_rated() -> None:
    drafts = by_rating([Answer("a"), Answer("b", rating=2), Answer("c", rating=7), Answer("d", rating=2)])
    assert (drafts.chosen.text, drafts.rejected.text, drafts.flags) == ("c", "b", ("rating_tie",))
    assert by_rating([Answer("a", rating=1), Answer("b", rating=1)]).undecided == TIE


def test_the_judge_is_held_against_the_ratings(tmp_path: Path) -> None:
    """It prefers the longer answer: right in two rows, wrong in one."""
    answers = [
        [
            {"model": "m", "response": "long " * 9, "rating": r},
            {"model": "n", "response": "short", "rating": 3},
        ]
        for r in (5, 4, 1)
    ]
    source = write_prompts(tmp_path / "in.parquet", prompt=["a", "b", "c"], completions=answers)
    out = tmp_path / "p.parquet"
    with Loopback(Players()) as server:
        done = clair(
            *["build-pairs", "--input", source, "--output", out, "--method", "off-policy-judge"],
            *roles(server, "judge"),
        )
    assert "agrees with the ratings in 66.7% of 3 comparisons" in done.stdout
    assert [content(row, "rejected") for row in rows(out)] == ["short"] * 3
    assert [row["chosen_rating"] for row in rows(out)] == [5, 4, 1]


def test_stronger_is_the_reviser_where_none_is_named(tmp_path: Path) -> None:
    players = few(2)
    players.revisions = {}
    source, out = source_of(tmp_path, players), tmp_path / "p.parquet"

    def behave(body: dict[str, Any], n: int) -> Said:
        if body["model"] == "reviser":
            assert body["messages"] == [{"role": "user", "content": body["messages"][0]["content"]}]
            assert body["temperature"] == 0.3
            return Said(f"<think>hm</think>{players.fresh[body['messages'][0]['content']]}")
        return Said(players.reply(body, n))

    with Loopback(behave) as server:
        flags = [*roles(server, "model", "reviser"), "--temperature", 0.3]
        build(source, out, "--method", "stronger-preferred", *flags)
    assert [content(row, "chosen") for row in rows(out)] == list(players.fresh.values())
    assert {(row["chosen_model"], row["template"]) for row in rows(out)} == {("reviser", None)}


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    """The example, run as its first lines say, and what is said of a class that is none."""
    players = few(2)
    source, out = source_of(tmp_path, players), tmp_path / "p.parquet"

    def behave(body: dict[str, Any], n: int) -> Said:
        if len(body["messages"]) == 3:
            return Said(body["messages"][1]["content"] + " Mended.")
        return Said(players.reply(body, n))

    with Loopback(behave) as server:
        flags = ["build-pairs", "--input", source, "--output", out, *roles(server, "model", "judge")]
        flags += ["--verify", "--method", "self_refined:SelfRefined"]
        done = clair(*flags, "--json", cwd=ROOT / "examples" / "methods")
        assert done.returncode == 0, done.stderr
        found = rows(out)
        for name, words in (
            ("self_refined:Nothing", "no class"),
            ("self_refined:Draft", "Method"),
            ("not_there:Any", "no module"),
        ):
            told = clair(*flags[:-1], name, cwd=ROOT / "examples" / "methods")
            assert (told.returncode, words in told.stderr) == (2, True), told.stderr
        mine = (ROOT / "examples" / "methods" / "self_refined.py").read_text()
        (tmp_path / "broken.py").write_text(mine.replace("reply.text.strip()", "reply.text[10_000]"))
        told = clair(*flags[:-1], "broken:SelfRefined", "--continue", cwd=tmp_path)
        assert told.returncode == 1
        assert "the method self-refined failed in row 0: IndexError" in told.stderr
    assert [content(row, "chosen") for row in found] == [
        players.samples[p][0] + " Mended." for p in players.samples
    ]
    assert {row["method"] for row in found} == {"self_refined"}
    assert {row["judge_winner"] for row in found} == {"chosen"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"method": "on-policy-judge", "model": "m"}, "--method on-policy-judge needs a judge"),
        ({"model": "m", "reviser": "r", "verify": True}, "--verify needs a judge"),
        ({"model": "m", "reviser": "r", "judge": "j"}, "--verify puts it behind"),
        (
            {"model": "m", "reviser": "r", "stronger": "s"},
            "--stronger: --method clair asks no stronger model",
        ),
        ({"method": "stronger-preferred", "model": "m"}, "no stronger model is named"),
        (
            {"method": "on-policy-judge", "judge": "j", "judge_url": "http://127.0.0.1:9/v1"},
            "fewer than 2 answers",
        ),
        ({"method": "on-policy"}, "did you mean on-policy-judge"),
        ({"method": "clair,clair", "model": "m", "reviser": "r"}, "stands there twice"),
        ({"method": "on-policy-judge", "model": "m", "judge": "j,j"}, "a judge stands there twice"),
        (
            {"method": "on-policy-judge", "model": "m", "judge": "j", "judge_template": "paper"},
            "judge-template",
        ),
        (
            {"method": "off-policy-judge", "pick": "judge", "reviser": "r", "answers_column": "prompt"},
            "--pick",
        ),
        ({"answer_columns": "a,b", "rating_columns": "c"}, "--rating-columns names 1"),
        ({"samples": 1}, "fewer than the two"),
    ],
)
def test_half_a_configuration_is_refused(flags: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["a"])
    with pytest.raises(UsageError) as told:
        clair_apo.build_pairs(input=source, output=tmp_path / "p.parquet", **flags)
    assert words in str(told.value)
    assert not (tmp_path / "p.run").exists()


def test_a_missing_column_of_answers_is_named(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["a"])
    with pytest.raises(ClairError, match=r"no column 'completions'.*--answers-column"):
        clair_apo.build_pairs(input=source, output=tmp_path / "p.parquet", method="off-policy-judge")


def test_the_cap_holds_for_judges_too(tmp_path: Path) -> None:
    players = few(10)
    source, out = source_of(tmp_path, players), tmp_path / "p.parquet"
    with Loopback(players) as server:
        flags: dict[str, Any] = {
            "input": source,
            "output": out,
            "method": "on-policy-judge",
            "verify": True,
            "model": "student",
            "model_url": server.url,
            "judge": "judge",
            "judge_url": server.url,
            "model_price": "0,0",
            "judge_max_tokens": 10,
            "concurrency": 2,
        }
        with pytest.raises(UsageError, match="none is known for judge"):
            clair_apo.build_pairs(**flags, max_cost=1)
        flags["judge_price"] = "100,1000"  # 0.006 USD a call, as the server counts
        with pytest.raises(StoppedEarly, match="--max-cost"):
            clair_apo.build_pairs(**flags, max_cost=0.09)
        summary = clair_apo.build_pairs(**flags)
    assert summary["judge"]["calls"] == 20
    assert summary["cost_usd"] == pytest.approx(20 * 0.006)
    assert summary["kept"] == 10
