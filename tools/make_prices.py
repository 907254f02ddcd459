"""Makes python/clair_apo/data/prices.json, the list prices that come along, from `genai-prices` of PyPI.

    uv run --no-project --with genai-prices==0.2.3 python tools/make_prices.py --date 2026-11-10

The date is the day of the package's upload (`uv lock` writes it): the prices are those of that day, and
changes announced for later ones. Only facts are carried over (names, numbers, dates), of models that are
asked for text. Every price is looked up again in the package before the file is written.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import genai_prices
from genai_prices import types as t
from genai_prices.data import providers

TARGET = Path(__file__).parents[1] / "python/clair_apo/data/prices.json"


@dataclass
class Group:
    provider: str
    name: str
    hosts: list[str]
    # Closed models: their price counts at gateways too. Open weights anyone serves at any price.
    anywhere: bool = False
    # These choose among the names of the package. It has some that the vendor's own server does not know.
    only: str = ""
    drop: str = "$^"


GROUPS = [
    Group("openai", "OpenAI", ["api.openai.com"], True, drop=r"gpt-oss|:extended|\.ft|^ft:gpt-4-"),
    Group("anthropic", "Anthropic", ["api.anthropic.com"], True),
    Group("google", "Google", ["generativelanguage.googleapis.com"], True, only="gemini-", drop=":"),
    # The weights of grok-2 are open.
    Group("x-ai", "xAI", ["api.x.ai"], True, drop="/|grok-2"),
    # These are closed; its other models have open weights, Medium 3.5 too.
    Group(
        "mistral",
        "Mistral",
        ["api.mistral.ai"],
        True,
        only=r"(mistral-medium(-2312|-2505|-2508|-latest)?|magistral-medium.*|codestral-(latest|\d+)"
        r"|mistral-saba(-latest)?)$",
    ),
    Group("mistral", "Mistral", ["api.mistral.ai"], drop=":"),
    # The dearest hours of the day count, so that a cap on the cost holds in them.
    Group(
        "deepseek",
        "DeepSeek at its dearest hours",
        ["api.deepseek.com"],
        True,
        only="deepseek-(chat|reasoner|flash)$",
    ),
    Group(
        "deepseek",
        "DeepSeek at its dearest hours",
        ["api.deepseek.com"],
        only="deepseek-(chat|reasoner|flash|v4)",
    ),
    Group("groq", "Groq", ["api.groq.com"]),
    Group("together", "Together", ["api.together.xyz", "api.together.ai"]),
    Group("openrouter", "OpenRouter", ["openrouter.ai", "api.openrouter.ai"], only=".+/", drop=":batch|^~"),
    Group("fireworks", "Fireworks", ["api.fireworks.ai"]),
    Group("cerebras", "Cerebras", ["api.cerebras.ai"], drop="^cerebras"),
    Group("cohere", "Cohere", ["api.cohere.ai", "api.cohere.com"]),
    Group("moonshotai", "Moonshot", ["api.moonshot.ai", "api.moonshot.cn"]),
    Group("zai", "Z.AI", ["api.z.ai"]),
    Group("minimax", "MiniMax", ["api.minimax.io", "api.minimaxi.com"]),
    Group("novita", "Novita", ["api.novita.ai"]),
    Group("baseten", "Baseten", ["inference.baseten.co"]),
    Group("meta", "Meta", ["api.meta.ai"]),
]

# Models for something else than chat, and such as charge for searches besides tokens.
NOT_CHAT = re.compile(
    r"image|audio|tts|realtime|transcri|embed|moderation|-ocr|omni|robotics|nano-banana|voxtral|guard|safety"
    r"|computer-use|-search|deep-research|perplexity/|/router$"
    r"|gpt-3.5-turbo-instruct|^(text-)?(ada|babbage|curie|davinci)\b"
)
# Price keys that cost nothing where a model is only asked for text; with any other it is left out.
TEXT_KEYS = re.compile(
    r"(input|output|cache_read|cache_write|cache_write_1h|input_audio|cache_audio_read)_mtok"
    r"|(web|storage)_searches_kcount"
)
# Rules of the package that end within a date, and the name before it.
CUT = {
    "claude-sonnet-4-2025": "claude-sonnet-4",
    "gemini-2.0-flash-0": "gemini-2.0-flash",
    "ft:gpt-4o-2024-": "ft:gpt-4o",
    "ft:gpt-4o-mini-2024-": "ft:gpt-4o-mini",
}
# What may stand behind a name that takes snapshots; prices.py knows the same forms.
SNAPSHOTS = ["-latest", "-2024-08-06", "-20251201", "-2025-12-01", "@20251201", "-001", "-0613", "-2509"]

Row = list[float]


def rules(match: Any) -> Iterator[tuple[str, str]]:
    """A rule of the package as (kind, text), with kind `name` (this name) or `dated` (this name, also with
    a snapshot behind it).

    The package's prefixes and substrings take anything there, which would give a `-fast` or an `-8b` the
    price of another model, so they count for snapshots only.
    """
    match match:
        case t.ClauseOr():
            for part in match.or_:
                yield from rules(part)
        case t.ClauseAnd():  # a prefix, and that it is no speech model: snapshots are none
            for part in match.and_:
                yield from rules(part)
        case t.ClauseEquals():
            yield "name", match.equals.lower()
        case t.ClauseEndsWith():
            yield "name", match.ends_with.lower()
        case t.ClauseStartsWith() | t.ClauseContains():
            text = (match.starts_with if isinstance(match, t.ClauseStartsWith) else match.contains).lower()
            stem = CUT.get(text, text.rstrip("-@"))
            yield "dated", stem
            if text not in CUT:
                yield "name", stem
            if re.fullmatch(r"gemini-[\d.]+-[a-z-]+", stem) and not re.search("preview|exp|latest", stem):
                for preview in (stem + "-preview", stem + "-exp"):
                    yield "name", preview
                    yield "dated", preview
        case t.ClauseRegex():
            if stem := re.fullmatch(r"\^([\w./\\-]+?)(?:-|\[-@\])\\d.*", match.regex):
                yield "dated", stem[1].replace("\\", "")


def price_on(model: Any, day: date) -> Row | None:
    """[input, output] or [input, output, cached input] on a day; None where that does not tell the cost.

    Prices by the length of the context: those of the shortest. Prices by the hour: the dearest. What writes
    into a cache cost more (from GPT-5.6 on a quarter of the input, unasked) has no place in a row.
    """
    if not isinstance(model.prices, list):
        return as_row(model.prices)
    hours = [model.prices[0].prices]
    for condition in model.prices:
        if isinstance(condition.constraint, t.TimeOfDateConstraint):
            hours.append(condition.prices)
        elif condition.constraint is None or condition.constraint.start_date <= day:
            hours = [condition.prices]
    rows = [row for prices in hours if (row := as_row(prices))]
    return max(rows, key=lambda row: row[1]) if len(rows) == len(hours) else None


def as_row(prices: Any) -> Row | None:
    values = {key: value for key, value in vars(prices).items() if value is not None}
    if not all(TEXT_KEYS.fullmatch(key) for key in values):
        return None
    base = {key: float(getattr(value, "base", value)) for key, value in values.items()}
    if "input_mtok" not in base or "output_mtok" not in base:
        return None
    row = [base["input_mtok"], base["output_mtok"]]
    return [*row, base["cache_read_mtok"]] if "cache_read_mtok" in base else row


def starts_of(model: Any) -> list[date]:
    conditions = model.prices if isinstance(model.prices, list) else []
    return [
        condition.constraint.start_date
        for condition in conditions
        if isinstance(condition.constraint, t.StartDateConstraint)
    ]


def made(group: Group, day: date, taken: set[tuple[str, str]]) -> dict[str, Any]:
    provider = next(provider for provider in providers if provider.id == group.provider)
    prices: dict[str, dict[str, Row]] = {"names": {}, "dated": {}}
    later: dict[str, dict[str, dict[str, Row]]] = {}
    for model in provider.models:
        found = dict.fromkeys(rules(model.match))
        if group.provider == "openrouter" and model.id.endswith(":free"):
            row: Row | None = [0, 0]
        else:
            row = price_on(model, day)
        if row is None:
            continue
        if provider.find_model(model.id) is model and not model.id.endswith("-"):
            found["name", model.id.lower()] = None
        for kind, name in found:
            if not re.match(group.only, name) or re.search(group.drop, name) or NOT_CHAT.search(name):
                continue
            if (group.provider, kind + name) in taken:
                continue
            # The package takes the first model that matches, which may be another one.
            whole = [name] if kind == "name" else [name + tail for tail in SNAPSHOTS]
            if not any(provider.find_model(text) is model for text in whole):
                continue
            taken.add((group.provider, kind + name))
            table = {"name": "names", "dated": "dated"}[kind]
            prices[table][name] = row
            for start in starts_of(model):
                if start > day and (changed := price_on(model, start)):
                    announced = later.setdefault(start.isoformat(), {"names": {}, "dated": {}})
                    announced[table][name] = changed
    return {
        "name": group.name,
        "hosts": group.hosts,
        "anywhere": group.anywhere,
        **prices,
        **({"later": later} if later else {}),
    }


def check(table: dict[str, Any], day: date) -> None:
    """Compares with the package's own answers at noon, when the hours of DeepSeek's v4 are not dear."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    for spec, group in zip(GROUPS, table["groups"], strict=True):
        provider = next(provider for provider in providers if provider.id == spec.provider)
        snapshots = {stem + tail: row for stem, row in group["dated"].items() for tail in SNAPSHOTS}
        for name, row in (snapshots | group["names"]).items():
            model = provider.find_model(name)
            if model is None:  # a form of a snapshot that this model's rule does not take
                assert name in snapshots, f"{spec.provider}: {name} is not in the package"
                continue
            prices = model.get_prices(noon)
            for key, value in zip(("input_mtok", "output_mtok", "cache_read_mtok"), row, strict=False):
                theirs = getattr(prices, key)
                theirs = float(getattr(theirs, "base", theirs) or 0)
                by_hours = spec.provider == "deepseek" and value > theirs
                assert value == theirs or by_hours, f"{spec.provider}: {name}: {key} {value}, not {theirs}"


def written(table: dict[str, Any]) -> str:
    """JSON with a line for each model."""

    def text(value: Any, depth: int) -> str:
        if isinstance(value, dict) and value:
            inner = ",\n".join(
                f"{' ' * depth}{json.dumps(key)}: {text(v, depth + 1)}" for key, v in value.items()
            )
            return "{\n" + inner + "}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[" + ", ".join(text(item, depth) for item in value) + "]"
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        if isinstance(value, list):
            return "[" + ",".join(text(item, depth) for item in value) + "]"
        return json.dumps(value)

    return text(table, 0) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--date", type=date.fromisoformat, required=True)
    day = parser.parse_args().date
    taken: set[tuple[str, str]] = set()
    table = {
        "about": "List prices, USD per million tokens: [input, output] or [input, output, cached input]. "
        "Made by tools/make_prices.py; read by clair_apo.llm.prices.",
        "from": f"genai-prices {genai_prices.__version__} (MIT), https://github.com/pydantic/genai-prices",
        "date": day.isoformat(),
        "groups": [made(group, day, taken) for group in GROUPS],
    }
    check(table, day)
    TARGET.write_text(written(table), "utf-8")
    for group in table["groups"]:
        print(f"{group['name']}: {len(group['names'])} names, {len(group['dated'])} with snapshots")
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
