"""Who is asked, and what for."""

from __future__ import annotations

from collections.abc import Iterable

# Further judges are judge-2, judge-3 …
ALL = MODEL, REVISER, STRONGER, JUDGE = "model", "reviser", "stronger", "judge"
# As the table of failures names them.
INPUT, SAMPLE, REVISE, AFRESH, JUDGING = "input", "sample", "revise", "stronger", "judge"


def judges(roles: Iterable[str]) -> list[str]:
    """Those of some roles that are judges."""
    return [role for role in roles if role.partition("-")[0] == JUDGE]
