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
            "--best-of: it is about revisions, and --method on-policy-judge asks for none",
        ),
        ({**OTHERS, "rounds": 2}, "--rounds: it is about revisions"),
        ({**OTHERS, "reply_format": "edits"}, "--reply-format edits: it is about revisions"),
        ({**OTHERS, "template": "paper"}, "--template: it is about revisions"),
        ({**OTHERS, "minimality": "0..0.5"}, "--minimality: it is about revisions"),
        ({**REVISER, "round_pairs": "neighbours"}, "goes with --rounds"),
        ({**REVISER, "samples": 5}, "--samples: --method clair takes at most one"),
        (
            {**REVISER, "more_response_columns": "prompt"},
            "--more-response-columns: --method clair takes at most one",
        ),
        ({**REVISER, "pick": "rating"}, "--pick: --method clair takes no answers of other models"),
        ({**REVISER, "answers_column": "prompt"}, "--answers-column: --method clair"),
        ({**REVISER, "answer_columns": "prompt,response"}, "--answer-columns: --method clair"),
        ({**GIVEN, **JUDGE, "response_column": "response"}, "--response-column: --method off-policy-judge"),
        (
            {**GIVEN, **JUDGE, "model": "m", "model_url": AT},
            "--model: --method off-policy-judge asks no model",
        ),
        ({**GIVEN, **JUDGE, **REVISER}, "--reviser: --method off-policy-judge asks no reviser"),
        ({**REVISER, "model_temperature": 0.5}, "--model-temperature: no model is named; --model NAME"),
        ({**REVISER, "model_key_env": "PATH"}, "--model-key-env: it goes with --model"),
        ({**REVISER, "model_api": "anthropic"}, "--model-api: it goes with --model"),
        (
            {**REVISER, "stronger_max_tokens": 9},
            "--stronger-max-tokens: --method clair asks no stronger model",
        ),
        ({**REVISER, "judge_temperature": 0}, "--judge-temperature: no judge is asked here"),
        ({**REVISER, "judge_key_env": "PATH"}, "--judge-key-env: it goes with --judge"),
        ({**OTHERS, "temperature": 0.5}, "--temperature: it is of the reviser"),
        (
            {**OTHERS, "extra_body": {"seed": 1}},
            "for others there is --model-extra-body and --judge-extra-body",
        ),
        (
            {**REVISER, "method": "stronger-preferred", "stronger": "s", "stronger_url": AT},
            "--reviser: --method stronger-preferred asks no reviser",
        ),
        (
            {**REVISER, "method": "stronger-preferred", "stronger_api": "openai"},
            "--stronger-api: it goes with",
        ),
        ({"api": "anthropic"}, "--api: nobody who is asked over it is named"),
        ({"reviser_key_env": "PATH"}, "--reviser-key-env: it goes with --reviser"),
        ({"reasoning_effort": "low"}, "takes no reasoning_effort"),
        ({"reviser": "local:smollm2", "reviser_api": "openai"}, "so --reviser-api has no meaning"),
        ({**REVISER, "seed": 3}, "--seed: it is that of --sample"),
        (
            {**REVISER, "batch": "collect", "dry_run": False, "retry_failed": True},
            "--retry-failed is about what",
        ),
        ({**REVISER, "batch": "collect", "dry_run": False, "fresh": True}, "--fresh is about what"),
        ({**REVISER, "batch": "status"}, "--dry-run is about what"),
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
        clair_apo.build_pairs(
            **{"input": source, "output": tmp_path / "p.parquet", "dry_run": True, **flags}
        )
    assert words in str(told.value)


@pytest.mark.parametrize(
    "flags",
    [
        {**REVISER, **JUDGE, "rounds": 2, "round_pairs": "neighbours", "drop": "not_verified"},
        {**REVISER, **JUDGE, "verify": True, "drop": "not_verified", "judge_template": "absolute"},
        {**OTHERS, **REVISER, "method": "clair,on-policy-judge", "best_of": 4},
        {**GIVEN, **JUDGE},
        {**OTHERS, "samples": 3, "more_response_columns": "prompt", "response_column": "response"},
        {**REVISER, "method": "stronger-preferred", "temperature": 0.5, "stronger_max_tokens": 9},
        {**REVISER, "model": "m", "model_url": AT, "model_temperature": 0.5, "model_key_env": "PATH"},
        {"max_tokens": 20, "model_temperature": 0.5},
        {**REVISER, "sample": 1, "seed": 3, "template": "answer-only", "minimality": "0..0.5"},
    ],
)
def test_where_it_has_one_it_is_taken(flags: dict[str, Any], tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.parquet", prompt=["a"], response=["b"])
    told = clair_apo.build_pairs(input=source, output=tmp_path / "p.parquet", dry_run=True, **flags)
    assert told["calls"]["high"] > 0
