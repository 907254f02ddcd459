"""Tables of pairs, cleaned: rows chosen, deduplicated, split, converted, freed of benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clair_apo.clean.duplicates import dedup

__all__ = ["dedup"]


def __getattr__(name: str) -> Any:
    if name == "dedup":
        from clair_apo.clean.duplicates import dedup

        return dedup
    raise AttributeError(f"module 'clair_apo.clean' has no attribute {name!r}")
