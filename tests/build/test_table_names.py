"""A run that goes on with other methods: no table stands under a name that says something else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import clair_apo
from clair_apo.build import command
from clair_apo.errors import UsageError
from cli import rows, write_prompts
from loopback import Loopback
from players import Players

PROMPTS = [f"Question {n}?" for n in range(4)]
METHODS = ["clair", "on-policy-judge", "stronger-preferred"]


def players() -> Players:
    return Players(
        samples={p: [f"Answer to {p}", f"Another answer to {p}"] for p in PROMPTS},
        # The last one is no change, and stands among the dropped ones.
        revisions={p: f"Answer to {p}" + (" And more." if p != PROMPTS[-1] else "") for p in PROMPTS},
        fresh={p: f"All of it, from the start: {p}" for p in PROMPTS},
    )


def flags(folder: Path, server: Loopback, methods: list[str], **more: Any) -> dict[str, Any]:
    named = {"clair": ("reviser",), "on-policy-judge": ("judge",), "stronger-preferred": ("stronger",)}
    roles = {"model": "student"} | {role: role for method in methods for role in named[method]}
    return {
        "input": write_prompts(folder / "in.parquet", prompt=PROMPTS),
        "output": folder / "p.parquet",
        "method": ",".join(methods),
        **roles,
        **{f"{role}_url": server.url for role in roles},
        "continue_": True,
        **more,
    }


def held(folder: Path) -> dict[str, tuple[set[str], int]]:
    """What the tables of pairs hold by their names: methods and number of rows."""
    return {
        path.name: ({row["method"].replace("_", "-") for row in rows(path)}, len(rows(path)))
        for path in folder.glob("p*.parquet")
        if "dropped" not in path.name and "failures" not in path.name
    }


def test_the_same_methods_and_judges_in_another_order_are_the_same_run(tmp_path: Path) -> None:
    known = players()
    known.judges |= {"other": known.judges["judge"]}
    with Loopback(known) as server:
        first = flags(tmp_path, server, ["clair", "stronger-preferred"], verify=True, continue_=False)
        first |= {"judge": "judge,other", "judge_url": server.url}
        clair_apo.build_pairs(**first)
        asked = len(server.asked)
        turned = {**first, "method": "stronger-preferred,clair", "judge": "other,judge"}
        again = clair_apo.build_pairs(**turned)
        assert (len(server.asked), again["calls"]) == (asked, asked)
        with pytest.raises(UsageError, match="method: stronger-preferred,clair before, clair now"):
            clair_apo.build_pairs(**{**first, "method": "clair", "stronger": None, "stronger_url": None})
        with pytest.raises(UsageError, match="judge: other, judge before, judge now"):
            clair_apo.build_pairs(**{**first, "judge": "judge"})


def test_the_table_of_one_method_gets_its_name_with_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Loopback(players()) as server:
        clair_apo.build_pairs(**flags(tmp_path, server, ["clair"]))
        assert held(tmp_path) == {"p.parquet": ({"clair"}, 3)}
        before = sorted(path.name for path in tmp_path.glob("p.*"))
        known = flags(tmp_path, server, ["clair", "stronger-preferred"], quiet=False)
        clair_apo.build_pairs(**known)
        assert held(tmp_path) == {
            "p.clair.parquet": ({"clair"}, 3),
            "p.stronger-preferred.parquet": ({"stronger-preferred"}, 4),
        }
        assert "p.parquet is " in (said := capsys.readouterr().err)
        assert "p.clair.parquet from now on" in said
        assert len(rows(tmp_path / "p.clair.dropped.parquet")) == 1
        assert not (tmp_path / "p.dropped.parquet").exists()
        # Another method alone: what is left of the first stays under its own name.
        clair_apo.build_pairs(**flags(tmp_path, server, ["stronger-preferred"], quiet=False))
        assert held(tmp_path) == {
            "p.clair.parquet": ({"clair"}, 3),
            "p.parquet": ({"stronger-preferred"}, 4),
        }
        assert "p.clair.parquet holds pairs of an earlier start with clair" in capsys.readouterr().err
        # What the other methods were asked with stays noted, and is no change where they are not run.
        clair_apo.build_pairs(**flags(tmp_path, server, ["stronger-preferred"], continue_=False))
        clair_apo.build_pairs(**flags(tmp_path, server, ["clair"], fresh=True, continue_=False))
        assert held(tmp_path) == {
            "p.parquet": ({"clair"}, 3),
            "p.stronger-preferred.parquet": ({"stronger-preferred"}, 4),
        }
        assert {*before} <= {path.name for path in tmp_path.glob("p.*")}


def test_whatever_is_run_next_each_method_has_one_table(tmp_path: Path) -> None:
    """Random sets of methods and numbers of rows, against what each table must hold. Some starts end
    between the new names and the new rows."""
    dice = random.Random(8)
    last: dict[str, int] = {}
    of_all = {"clair": [1, 2, 3, 3], "on-policy-judge": [1, 2, 3, 4], "stronger-preferred": [1, 2, 3, 4]}

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with Loopback(players()) as server:
        for _ in range(12):
            methods = dice.sample(METHODS, dice.randint(1, 3))
            limit = dice.randint(1, 4)
            known = flags(tmp_path, server, methods, limit=limit)
            if dice.random() < 0.3:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(command, "write_tables", killed)
                    with pytest.raises(KeyboardInterrupt):
                        clair_apo.build_pairs(**known)
            else:
                clair_apo.build_pairs(**known)
                last |= {method: of_all[method][limit - 1] for method in methods}
            found = held(tmp_path)
            assert sorted(found.values(), key=str) == sorted(
                (({method}, count) for method, count in last.items()), key=str
            )
            for name, (of, _) in found.items():
                assert name in ("p.parquet", f"p.{next(iter(of))}.parquet")


def test_what_is_not_of_this_run_is_left_alone(tmp_path: Path) -> None:
    with Loopback(players()) as server:
        clair_apo.build_pairs(**flags(tmp_path, server, ["clair"]))
        mine = write_prompts(tmp_path / "p.clair.parquet", prompt=["mine"])
        with pytest.raises(UsageError, match=r"p\.clair\.parquet now, and there is such a file"):
            clair_apo.build_pairs(**flags(tmp_path, server, ["stronger-preferred"]))
        assert rows(mine) == [{"prompt": "mine"}]
        mine.unlink()
        assert held(tmp_path)["p.parquet"] == ({"clair"}, 3)
        known = flags(tmp_path, server, METHODS[::2], input=tmp_path / "p.parquet")
        with pytest.raises(UsageError, match="is the input and would get another name"):
            clair_apo.build_pairs(**known)
        # Another format is another file, and what it leaves has a name that says whose it is.
        clair_apo.build_pairs(**flags(tmp_path, server, ["clair"], output=tmp_path / "p.jsonl"))
        assert held(tmp_path) == {"p.parquet": ({"clair"}, 3)}
        clair_apo.build_pairs(**flags(tmp_path, server, METHODS, output=tmp_path / "p.jsonl"))
        assert {path.name for path in tmp_path.glob("p.*.jsonl")} == {f"p.{name}.jsonl" for name in METHODS}
        assert not (tmp_path / "p.jsonl").exists()
