"""What model calls cost: prices as given, and a dated table of list prices.

The table (`data/prices.json`, made by tools/make_prices.py) is not guessed from: a name that it does not
hold has no price.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NotRequired, TypedDict
from urllib.parse import urlsplit

import yaml

from clair_apo.errors import ClairError

# What names a version of the same model behind its name: 2024-08-06, 20240806, 05-20, 09-2025, 0613, 001.
# Anything else there, such as `-audio`, `-fast` or `-8b`, may be another model with another price.
_MONTH, _DAY = "(0[1-9]|1[0-2])", r"(0[1-9]|[12]\d|3[01])"
_SNAPSHOT = re.compile(
    rf"-latest|[-@](20\d\d-{_MONTH}-{_DAY}|20\d\d{_MONTH}{_DAY}|{_MONTH}-({_DAY}|20\d\d)|\d{{4}}|0\d\d)"
)
_KEYS = ("input", "output", "cached_input")


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens. `source` says to a person where the numbers come from."""

    input: float
    output: float
    cached_input: float | None = None  # None: as input
    source: str = ""

    @property
    def words(self) -> str:
        """The price for people."""
        return f"{self.input:g} USD in, {self.output:g} out per million tokens ({self.source})"

    def cost(self, tokens_in: int, tokens_out: int, tokens_cached: int = 0) -> float:
        """USD. `tokens_cached` is the part of `tokens_in` that the server had in its cache."""
        cached = min(tokens_cached, tokens_in)  # whatever a server reports, the cost does not fall below 0
        cached_price = self.input if self.cached_input is None else self.cached_input
        usd = (tokens_in - cached) * self.input + cached * cached_price + tokens_out * self.output
        return usd / 1e6


def parse_price(text: object, source: str) -> Price:
    """A price from `2.5,10`, or from a list of these two numbers: input and output.

    Raises ValueError with words for a person.
    """
    parts = text.split(",") if isinstance(text, str) else text
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ValueError(
            f"{text!r} is not IN,OUT: USD per million tokens of input and of output, such as 2.5,10"
        )
    return Price(_usd(parts[0], "input"), _usd(parts[1], "output"), source=source)


def read_prices(path: Path) -> dict[str, Price]:
    """The prices of a YAML or JSON file by model name: `[in, out]` or `{input, output, cached_input}`.

    Raises ClairError that names the file, and the model where one is wrong.
    """
    try:
        text = path.read_text("utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ClairError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ClairError(f"{path}: not {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    if not isinstance(content, dict):
        raise ClairError(f"{path}: prices by model name were expected, such as `gpt-4o: [2.5, 10]`")
    prices = {}
    for model, value in content.items():
        if not isinstance(model, str):
            raise ClairError(f"{path}: {model!r} is not a name; put it in quotes if it is a model's")
        try:
            prices[model] = _read_price(value, path.name)
        except ValueError as error:
            raise ClairError(f"{path}: {model}: {error}") from error
    return prices


def list_price(model: str, url: str, on: date | None = None) -> Price | None:
    """The list price of a model at the server of `url`, on a day (today); None where the table has none.

    A server that the table does not know may be a gateway: there, closed models have the price of their
    vendor, and the source says that this server may charge another. Where long contexts cost more, the
    price is that of short ones.
    """
    table = _table()
    host = _host(url)
    here = [group for group in table["groups"] if host in group["hosts"]]
    doubt = "" if here else "; this server may charge another"
    # Google lists its models as models/…; in fine-tuned ones the part up to the second colon counts.
    name = model.lower().removeprefix("models/")
    if name.startswith("ft:"):
        name = ":".join(name.split(":")[:2])
    for group in here or [group for group in table["groups"] if group["anywhere"]]:
        row = _find(group, name, on or date.today())
        if row is not None:
            source = f"list price of {group['name']}, {table['date']}{doubt}"
            return Price(row[0], row[1], row[2] if len(row) > 2 else None, source)
    return None


class _Prices(TypedDict):
    """Rows `[input, output]` or `[input, output, cached input]` by name. What stands under `dated` is
    also the price of the name with a snapshot behind it."""

    names: dict[str, list[float]]
    dated: dict[str, list[float]]


class _Group(_Prices):
    """The prices of one vendor. `later`: those that it has announced, by the day they begin."""

    name: str
    hosts: list[str]
    anywhere: bool
    later: NotRequired[dict[str, _Prices]]


class _Table(TypedDict):
    date: str
    groups: list[_Group]


@cache
def _table() -> _Table:
    table: _Table = json.loads((resources.files("clair_apo") / "data" / "prices.json").read_text("utf-8"))
    return table


def _find(group: _Group, name: str, on: date) -> Sequence[float] | None:
    stems = [
        stem for stem in group["dated"] if name.startswith(stem) and _SNAPSHOT.fullmatch(name[len(stem) :])
    ]
    row = group["names"].get(name)
    stem = None if row or not stems else max(stems, key=len)
    if stem:
        row = group["dated"][stem]
    for since, prices in sorted(group.get("later", {}).items()):
        if since <= on.isoformat():
            row = (prices["dated"].get(stem) if stem else prices["names"].get(name)) or row
    return row


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # not a URL: whoever calls it says so
        return ""


def _read_price(value: object, source: str) -> Price:
    if not isinstance(value, dict):
        return parse_price(value, source)
    for key in value:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1, 0.5)
            raise ValueError(
                f"unknown key {str(key)!r}" + (f"; the nearest is {near[0]!r}" if near else "")
            )
    for key in ("input", "output"):
        if key not in value:
            raise ValueError(f"{key!r} is missing (USD per million tokens)")
    cached = value.get("cached_input")
    return Price(
        _usd(value["input"], "input"),
        _usd(value["output"], "output"),
        None if cached is None else _usd(cached, "cached_input"),
        source,
    )


def _usd(value: object, what: str) -> float:
    """Raises ValueError for what is no price."""
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)  # of text too: YAML takes 1e-1 for a word
    if not 0 <= number < math.inf:
        shown = value.strip() if isinstance(value, str) else value
        raise ValueError(f"{what} is {shown!r}; a price is a number of USD, 0 or more")
    return number
