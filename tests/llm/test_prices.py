"""Prices: what calls cost, prices as given, and the list prices that come along."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from clair_apo.errors import ClairError
from clair_apo.llm import prices
from clair_apo.llm.prices import Price, list_price, parse_price, read_prices

OPENAI = "https://api.openai.com/v1"
ANTHROPIC = "https://api.anthropic.com/v1"
GOOGLE = "https://generativelanguage.googleapis.com/v1beta/openai"
GATEWAY = "http://localhost:4000/v1"
AZURE = "https://ours.openai.azure.com/openai/v1"
# A day between that of the table and the first change that it announces.
DAY = date(2026, 11, 20)


@pytest.mark.parametrize(
    ("price", "tokens", "usd"),
    [
        (Price(2.5, 10), (1_000_000, 100_000), 3.5),
        (Price(2.5, 10), (1_000_000, 0, 400_000), 2.5),
        (Price(2.5, 10, 1.25), (1_000_000, 0, 400_000), 2.0),
        (Price(2.5, 10, 0.0), (1000, 0, 1000), 0.0),
        (Price(2.5, 10, 1.25), (100, 0, 1000), 0.000125),  # more in the cache than there was
        (Price(2.5, 10, 1.25), (0, 0), 0.0),
    ],
)
def test_cost(price: Price, tokens: tuple[int, ...], usd: float) -> None:
    assert price.cost(*tokens) == pytest.approx(usd)


@pytest.mark.parametrize("text", ["2.5,10", " 2.5 , 10 ", [2.5, 10], (2.5, 10), ["25e-1", 10]])
def test_a_price_as_given(text: object) -> None:
    assert parse_price(text, "--price") == Price(2.5, 10.0, None, "--price")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2.5", "'2.5' is not IN,OUT"),
        ("2,5,10", "is not IN,OUT"),
        ([1, 2, 3], "is not IN,OUT"),
        (2.5, "2.5 is not IN,OUT"),
        (None, "is not IN,OUT"),
        ("2.5,", "output is ''"),
        ("-1,10", "input is '-1'; a price is a number of USD, 0 or more"),
        ("1,nan", "output is 'nan'"),
        ([math.inf, 1], "input is inf"),
        ([10**400, 1], "input is 1000"),
        ([True, 1], "input is True"),
        ("$1,2", "input is '$1'"),
    ],
)
def test_what_is_no_price(text: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_price(text, "--price")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.yaml", "a: [1, 2]\nb: {input: 3, output: 4, cached_input: 0.5}\n'c:d': 5,6\n"),
        ("p.json", '{"a": [1, 2],\n\t"b": {"input": 3, "output": 4, "cached_input": 0.5}, "c:d": "5,6"}'),
    ],
)
def test_a_file_of_prices(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert read_prices(file) == {
        "a": Price(1, 2, None, name),
        "b": Price(3, 4, 0.5, name),
        "c:d": Price(5, 6, None, name),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "prices by model name were expected"),
        ("- 1\n- 2", "prices by model name were expected"),
        ("a: [1", "not YAML"),
        ("405: [1, 2]", "405 is not a name"),
        ("a: [1]", "a: [1] is not IN,OUT"),
        ("a:", "a: None is not IN,OUT"),
        ("a: [1, .nan]", "a: output is nan"),
        ("a: {input: 1}", "a: 'output' is missing"),
        ("a: {input: 1, output: -2}", "a: output is -2"),
        ("a: {input: 1, output: 2, cached: 3}", "a: unknown key 'cached'; the nearest is 'cached_input'"),
        ("a: {input: 1, output: 2, 3: 4}", "a: unknown key '3'"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(ClairError, match=re.escape(f"{file}: {words}")):
        read_prices(file)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.yaml", None, "No such file"),
        ("p.json", b'{"a": [1, 2}', "not JSON"),
        ("p.json", b'{"a": [1, NaN]}', "a: output is nan"),
        ("p.yaml", b"\xff\xfe\xff", "not YAML"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ClairError, match=re.escape(words)):
        read_prices(file)


@pytest.mark.parametrize(
    ("model", "url", "numbers"),
    [
        ("gpt-4o", OPENAI, (2.5, 10, 1.25)),
        ("GPT-4o", "https://API.OpenAI.com:443/v1/", (2.5, 10, 1.25)),
        ("gpt-4o-2024-08-06", OPENAI, (2.5, 10, 1.25)),
        ("gpt-4o-2024-05-13", OPENAI, (5, 15, None)),  # a snapshot with a price of its own
        ("gpt-4o-mini", OPENAI, (0.15, 0.6, 0.075)),
        ("gpt-6-sol-2026-10-01", OPENAI, (2, 10, 0.2)),
        ("gpt-5.4", OPENAI, (2.5, 15, 0.25)),  # dearer beyond 272,000 tokens
        ("ft:gpt-4o-mini-2024-07-18:ours::abc", OPENAI, (0.3, 1.2, None)),
        ("claude-sonnet-4-5-20250929", ANTHROPIC, (3, 15, 0.3)),
        ("claude-opus-4-1", ANTHROPIC, (15, 75, 1.5)),
        ("claude-opus-4-20250514", ANTHROPIC, (15, 75, 1.5)),
        ("claude-3-5-haiku-latest", ANTHROPIC, (0.8, 4, 0.08)),
        ("gemini-2.5-pro", GOOGLE, (1.25, 10, 0.125)),
        ("models/gemini-2.5-pro-preview-05-06", GOOGLE, (1.25, 10, 0.125)),
        ("gemini-2.0-flash-001", GOOGLE, (0.1, 0.4, 0.025)),
        ("mistral-medium-2508", "https://api.mistral.ai/v1", (0.4, 2, 0.04)),
        ("open-mistral-nemo", "https://api.mistral.ai/v1", (0.15, 0.15, None)),
        ("grok-4", "https://api.x.ai/v1", (3, 15, 0.75)),
        ("llama-3.3-70b-versatile", "https://api.groq.com/openai/v1", (0.59, 0.79, None)),
        ("openai/gpt-oss-120b", "https://api.groq.com/openai/v1", (0.15, 0.6, 0.075)),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "https://api.together.xyz/v1", (0.88, 0.88, None)),
        ("anthropic/claude-sonnet-4.5", "https://openrouter.ai/api/v1", (3, 15, 0.3)),
        ("meta-llama/llama-3.3-70b-instruct:free", "https://openrouter.ai/api/v1", (0, 0, None)),
    ],
)
def test_list_prices(model: str, url: str, numbers: tuple[float, float, float | None]) -> None:
    price = list_price(model, url, DAY)
    assert price is not None
    assert (price.input, price.output, price.cached_input) == numbers
    assert re.fullmatch(r"list price of [A-Za-z ]+, 20\d\d-\d\d-\d\d", price.source)


@pytest.mark.parametrize(
    ("model", "url", "vendor"),
    [
        ("gpt-4o", GATEWAY, "OpenAI"),
        ("gpt-35-turbo", AZURE, "OpenAI"),
        ("claude-sonnet-4-5-20250929", GATEWAY, "Anthropic"),
        ("gemini-2.5-flash", GATEWAY, "Google"),
        ("grok-4", AZURE, "xAI"),
        ("magistral-medium-2509", GATEWAY, "Mistral"),
        ("deepseek-chat", GATEWAY, "DeepSeek at its dearest hours"),
    ],
)
def test_closed_models_have_their_vendors_price_at_a_gateway(model: str, url: str, vendor: str) -> None:
    price = list_price(model, url, DAY)
    assert price is not None
    assert re.fullmatch(
        rf"list price of {vendor}, 20\d\d-\d\d-\d\d; this server may charge another", price.source
    )


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("gpt-4o-audio-preview", OPENAI),
        ("gpt-4o-search-preview", OPENAI),  # each search costs besides
        ("gpt-4o-2031-01-01", OPENAI),
        ("gpt-4o-fast", OPENAI),
        ("gpt-4", ANTHROPIC),
        ("claude-opus-4-8-fast", ANTHROPIC),
        ("claude-opus-4-99", ANTHROPIC),
        ("claude", ANTHROPIC),
        ("gemini-1.5-flash-8b", GOOGLE),
        ("gemini-2.5-pro-preview-tts", GOOGLE),
        ("text-embedding-3-small", OPENAI),
        ("gpt-4o", "https://openrouter.ai/api/v1"),
        ("openai/gpt-4o:nitro", "https://openrouter.ai/api/v1"),
        ("openai/gpt-4o", GATEWAY),
        ("gpt-oss-120b", GATEWAY),
        ("mistral-large", GATEWAY),  # names of open weights, at Ollama too
        ("mistral-nemo", GATEWAY),
        ("deepseek-v4-flash", GATEWAY),
        ("llama3.1:8b", "http://localhost:11434/v1"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "http://localhost:8000/v1"),
        ("", OPENAI),
        ("llama3", "http://[::1/v1"),
    ],
)
def test_unknown_names_have_no_price(model: str, url: str) -> None:
    assert list_price(model, url, DAY) is None


def test_an_announced_price_begins_on_its_day() -> None:
    days = (date(2026, 11, 30), date(2026, 12, 1), date(2031, 1, 1))
    for model in ("gemini-4-argon", "gemini-4-argon-001"):
        found = [list_price(model, GOOGLE, day) for day in days]
        assert [(p.input, p.output, p.cached_input) for p in found if p] == [
            (2, 10, 0.1),
            (4, 20, 0.2),
            (4, 20, 0.2),
        ]


def test_the_table_is_whole() -> None:
    table = prices._table()
    assert date(2026, 1, 1) < date.fromisoformat(table["date"]) <= date.today()
    hosts: dict[str, str] = {}
    for group in table["groups"]:
        for host in group["hosts"]:
            assert hosts.setdefault(host, group["name"]) == group["name"]
        for layer in (group, *group.get("later", {}).values()):
            for name, row in [*layer["names"].items(), *layer["dated"].items()]:
                assert name == name.lower().strip(), name
                assert len(row) in (2, 3), name
                assert all(math.isfinite(usd) and 0 <= usd < 1000 for usd in row), name
                assert len(row) == 2 or row[2] <= row[0], name
        for later in group.get("later", {}).values():
            assert later["names"].keys() <= group["names"].keys()
            assert later["dated"].keys() <= group["dated"].keys()
    closed = [name for group in table["groups"] if group["anywhere"] for name in group["names"]]
    assert len(closed) == len(set(closed))


def test_the_module_is_light() -> None:
    code = (
        "import sys, clair_apo.llm.prices as p\n"
        "assert not p._table.cache_info().currsize\n"
        "heavy = {'pyarrow', 'pydantic', 'httpx', 'torch', 'genai_prices'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
