"""The flags of whoever is asked: where it is, its key, its API, its sampling."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from clair_apo.errors import UsageError
from clair_apo.flags import not_negative_float, positive, share

# As `clair_apo.llm.endpoint` has them; the help must not load what that imports.
APIS = ("openai", "anthropic")
# What is set for each role, with its prefix, under the names that servers have for it.
SAMPLING = ("temperature", "top_p", "max_tokens", "reasoning_effort")


def endpoint_arguments(group: argparse._ArgumentGroup, who: str, prefix: str) -> None:
    """Adds the flags of one role: `--{who}-url` and the like, and its sampling with `prefix`."""
    group.add_argument(
        f"--{who}-url",
        metavar="URL",
        help="base URL, without /chat/completions (default: $OPENAI_BASE_URL, $ANTHROPIC_BASE_URL)",
    )
    group.add_argument(
        f"--{who}-key-env",
        metavar="VAR",
        help="environment variable with the key (default: OPENAI_API_KEY, ANTHROPIC_API_KEY)",
    )
    if who == "judge":
        group.add_argument(
            "--judge-api", type=api_names, metavar="API[,API]", help="openai or anthropic (default: --api)"
        )
    else:
        group.add_argument(
            f"--{who}-api", choices=APIS, help="what its server speaks (default: that of --api)"
        )
    group.add_argument(f"--{prefix}temperature", type=not_negative_float, metavar="T")
    group.add_argument(f"--{prefix}top-p", type=share, metavar="P")
    group.add_argument(f"--{prefix}max-tokens", type=positive, metavar="N")
    group.add_argument(f"--{prefix}reasoning-effort", metavar="WORD")
    group.add_argument(
        f"--{prefix}extra-body",
        type=json_object,
        metavar="JSON",
        help="further fields of the request",
    )


def api_names(text: object) -> str:
    """One API, or one for each judge, with commas."""
    names = [name.strip() for name in str(text).split(",")]
    for name in names:
        if name not in APIS:
            raise argparse.ArgumentTypeError(f"{name!r} is no API; known are {', '.join(APIS)}")
    return ",".join(names)


def json_object(text: object) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant) if isinstance(text, str) else text
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    reserved = sorted({"model", "messages", "stream", "n"} & value.keys())
    if reserved:
        raise argparse.ArgumentTypeError(f"{reserved[0]!r} cannot be set this way")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def key_from(variable: str | None, usual: str = "OPENAI_API_KEY") -> str | None:
    """The key that the environment holds, under `usual` unless a variable is named. Raises UsageError for
    a named variable that is not set, or for a key that no header can hold; the key itself is in no
    message."""
    name = variable or usual
    key = os.environ.get(name, "").strip()
    if variable and not key:
        raise UsageError(f"the environment variable {name} is not set, or empty")
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"the key in {name} holds characters that no HTTP header can")
    return key or None
