"""clair-apo: contrastive preference pairs (CLAIR) and anchored preference optimisation (APO).

Importing this package is cheap: torch, pyarrow and polars come in only with what needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clair_apo.build import build_pairs
    from clair_apo.report import stats
    from clair_apo.train import train_model

    __version__: str

__all__ = ["__version__", "build_pairs", "stats", "train_model"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("clair-apo")
    if name == "build_pairs":
        from clair_apo.build import build_pairs

        return build_pairs
    if name == "stats":
        from clair_apo.report import stats

        return stats
    if name == "train_model":
        from clair_apo.train import train_model

        return train_model
    raise AttributeError(f"module 'clair_apo' has no attribute {name!r}")
