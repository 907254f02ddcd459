"""Methods of a user's own that go wrong, and rows of very long texts that are asked again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import clair_apo
from clair_apo.errors import ClairError
from cli import rows, write_prompts
from loopback import Answer, Loopback, marked

METHODS = """
import asyncio
from clair_apo.build.methods import MODEL, Answer, Draft, Method

class Raises(Method):
    name, asks = "raises", (MODEL,)
    async def __call__(self, row, talk):
        raise RuntimeError("trouble of my own")

class Naps(Method):
    name, asks = "naps", (MODEL,)
    async def __call__(self, row, talk):
        own = await talk.own_answer()
        await asyncio.sleep(0)
        return Draft(own, own)

class Forgets(Method):
    name, asks = "forgets", (MODEL,)
    async def __call__(self, row, talk):
        await talk.own_answer()
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Raises", "the method raises failed in row 0: RuntimeError: trouble of my own"),
        ("Naps", "a method awaited something else than its calls"),
        ("Forgets", "the method forgets failed in row 0: TypeError: it returned a NoneType, not a Draft"),
    ],
)
def test_a_mistake_in_a_method_is_told_as_one(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_that_fail.py").write_text(METHODS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = write_prompts(tmp_path / "in.parquet", prompt=["a?"])
    with Loopback(lambda body, n: Answer("own")) as server, pytest.raises(ClairError) as told:
        clair_apo.build_pairs(
            input=source,
            output=tmp_path / "p.parquet",
            model="m",
            model_url=server.url,
            method=f"mine_that_fail:{name}",
        )
    assert words in str(told.value)
    assert not (tmp_path / "p.parquet").exists()


def test_a_paid_failure_of_a_very_long_row_is_asked_again(tmp_path: Path) -> None:
    """Comparing its texts takes long, which is left to a thread while calls are under way."""
    long = "word " * 9_000
    source = write_prompts(tmp_path / "in.parquet", prompt=["a?"], response=[long])
    says = ["I'm sorry, but I can't help with that."]

    def behave(body: dict[str, object], n: int) -> Answer:
        return Answer(marked(long.upper()) if body["model"] == "r" else says[0])

    out = tmp_path / "p.parquet"
    with Loopback(behave) as server:
        flags = {
            "input": source,
            "output": out,
            "reviser": "r",
            "reviser_url": server.url,
            "judge": "j",
            "judge_url": server.url,
            "verify": True,
            "minimality": "0..0.5",
        }
        assert clair_apo.build_pairs(**flags)["judge"]["no_verdict"] == {"refusal": 1}
        says[0] = "[[C]]"
        assert clair_apo.build_pairs(**flags)["judge"]["no_verdict"] == {"refusal": 1}
        assert clair_apo.build_pairs(**flags, retry_failed=True)["kept"] == 1
        assert [item.body["model"] for item in server.asked] == ["r", "r", "j", "j", "j"]
    assert rows(out)[0]["judge_winner"] == "tie"
