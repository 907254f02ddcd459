"""What a preference data set looks like: its numbers, a view of them, and diffs of single pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clair_apo.report.summary import stats

__all__ = ["stats"]


def __getattr__(name: str) -> Any:
    if name == "stats":
        from clair_apo.report.summary import stats

        return stats
    raise AttributeError(f"module 'clair_apo.report' has no attribute {name!r}")
