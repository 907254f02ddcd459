"""The flags of the judges."""

from __future__ import annotations

import argparse

from clair_apo.build.endpoint_options import endpoint_arguments
from clair_apo.flags import named


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the group of the judge."""
    group = parser.add_argument_group(
        "the judge", "asked by on-policy-judge and off-policy-judge, and with --verify by any method"
    )
    group.add_argument(
        "--judge",
        type=judge_names,
        metavar="NAME[,NAME]",
        help="of several the majority decides (they share one URL and key, or have one each, with commas)",
    )
    endpoint_arguments(group, "judge", "judge-")
    group.add_argument(
        "--judge-template",
        metavar="NAME|FILE",
        help="how the judge is asked: pairwise, absolute or your own (`clair-apo templates`; "
        "default: pairwise)",
    )
    group.add_argument(
        "--verify",
        action="store_true",
        help="have the judge look at every pair, in both orders; where chosen does not win both, or no "
        "verdict can be read, the pair is flagged not_verified (--drop not_verified leaves it out)",
    )


def judge_names(text: object) -> str:
    """Names of judges with commas, as one text; a list as well, as YAML has it."""
    return ",".join(
        named(part) for part in (text if isinstance(text, list | tuple) else str(text).split(","))
    )
