"""build-pairs: prompts in, contrastive pairs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clair_apo.build.command import build_pairs

__all__ = ["build_pairs"]


def __getattr__(name: str) -> Any:
    if name == "build_pairs":  # the flags are read without what runs them
        from clair_apo.build.command import build_pairs

        return build_pairs
    raise AttributeError(f"module 'clair_apo.build' has no attribute {name!r}")
