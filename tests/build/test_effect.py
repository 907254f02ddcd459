"""Flags that would do nothing, or make every row fail, are told before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import clair_apo
from clair_apo.errors import UsageError
from cli import write_prompts

AT = "http://127.0.0.1:9/v1"
REVISER = {"reviser": "r", "reviser_url": AT}
JUDGE = {"judge": "j", "judge_url": AT}
OTHERS = {"method": "on-policy-judge", "model": "m", "model_url": AT, **JUDGE}
GIVEN = {"method": "off-policy-judge", "answer_columns": "prompt,response"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {**OTHERS, "best_of": 4},
            "--best-of is about revisions, and --method on-policy-judge asks for none",
        ),
        ({**OTHERS, "rounds": 2}, "--rounds is about revisions"),
        ({**OTHERS, "reply_format": "edits"}, "--reply-format edits is about revisions"),
        ({**REVISER, "round_pairs": "neighbours"}, "goes with --rounds"),
        ({**REVISER, "drop": "not_verified"}, "--drop not_verified: no judge is asked here"),
        ({**REVISER, "judge_template": "absolute"}, "--judge-template absolute: no judge is asked here"),
        ({**GIVEN}, "give --rating-columns, or --judge"),
        (
            {**GIVEN, "pick": "rating", **OTHERS, "method": "off-policy-judge,on-policy-judge"},
            "--rating-columns",
        ),
        ({**GIVEN, "answer_columns": "response"}, "--answer-columns names one column"),
    ],
)
def test_a_flag_without_effect_is_refused(flags: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["a"], response=["b"])
    with pytest.raises(UsageError) as told:
        clair_apo.build_pairs(input=source, output=tmp_path / "p.parquet", dry_run=True, **flags)
    assert words in str(told.value)


@pytest.mark.parametrize(
    "flags",
    [
        {**REVISER, **JUDGE, "rounds": 2, "round_pairs": "neighbours", "drop": "not_verified"},
        {**REVISER, **JUDGE, "verify": True, "drop": "not_verified", "judge_template": "absolute"},
        {**OTHERS, **REVISER, "method": "clair,on-policy-judge", "best_of": 4},
        {**GIVEN, **JUDGE},
    ],
)
def test_where_it_has_one_it_is_taken(flags: dict[str, Any], tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["a"], response=["b"])
    told = clair_apo.build_pairs(input=source, output=tmp_path / "p.parquet", dry_run=True, **flags)
    assert told["calls"]["high"] > 0
