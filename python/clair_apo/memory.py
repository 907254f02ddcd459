"""What the allocators of a process that runs one command and ends do with memory that is freed.

For the command line alone: all of it holds for the whole process, which a library has no right to change.
"""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's numbers of the settings of `mallopt`.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
# Blocks from this size on go back to the system when they are freed. By itself glibc raises the bound to
# that of the largest block ever freed, and then keeps batches that are long gone.
MMAP_BYTES = 1 << 20
TRIM_BYTES = 4 << 20


def spare_memory() -> None:
    """Makes the allocators give back what is freed. To be called before pyarrow is imported."""
    # Its own pools keep what they had at the peak, beside what Rust and Python keep.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    _mallopt({M_ARENA_MAX: 1, M_MMAP_THRESHOLD: MMAP_BYTES, M_TRIM_THRESHOLD: TRIM_BYTES})


def keep_memory() -> None:
    """Makes the allocator keep what is freed, for work that asks for the same again and again: the system
    need not clear its pages anew each time, which is up to a tenth of training on a CPU. The most that is
    held may grow by a twentieth, since blocks do not always fit where others lay."""
    _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})


def _mallopt(settings: dict[int, int]) -> None:
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for setting, value in settings.items():
            mallopt(setting, value)


def spare_pandas() -> None:
    """Keeps pyarrow from importing pandas, 45 MiB, only to ask whether a list of Python's is one of its
    own. What asks pyarrow for pandas outright still gets it."""
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    sys.meta_path.insert(0, _Pandas)
    try:
        pa.array([0])  # pyarrow tries the import once, and keeps to what it found
    finally:
        sys.meta_path.remove(_Pandas)


class _Pandas:
    """Says for a while that pandas is not installed."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
