"""Tables of pairs, cleaned: rows chosen, deduplicated, split, converted, freed of benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clair_apo.clean.contamination import decontaminate
    from clair_apo.clean.conversion import convert
    from clair_apo.clean.duplicates import dedup
    from clair_apo.clean.filtering import filter_rows
    from clair_apo.clean.splitting import split

__all__ = ["convert", "decontaminate", "dedup", "filter_rows", "split"]

_MODULES = {
    "convert": "conversion",
    "decontaminate": "contamination",
    "dedup": "duplicates",
    "filter_rows": "filtering",
    "split": "splitting",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # the flags are read without what runs them
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'clair_apo.clean' has no attribute {name!r}")
