"""The threads of PyTorch on a CPU, for work of ours.

Threads of our own would hinder PyTorch's: after each operation these stay awake for some milliseconds and
hold the cores. So our work is handed to the same ones, by the call that compilers make for OpenMP.
"""

from __future__ import annotations

import ctypes
import platform
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team:
    """The threads of the GNU OpenMP in `library`."""

    def __init__(self, library: Path) -> None:
        self._parallel = ctypes.CDLL(str(library)).GOMP_parallel
        self._parallel.argtypes = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None

    def run(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Runs each of `tasks` once, begun in their order, on as many threads as PyTorch uses; what lets go
        of the interpreter runs at the same time. Raises what a task raises, when all are at their end, and
        KeyboardInterrupt where an interrupt kept one from being run."""
        waiting = deque(tasks)
        failed: list[BaseException] = []
        done: list[object] = []

        def work(_: object) -> None:
            try:
                while waiting and not failed:
                    try:
                        task = waiting.popleft()
                    except IndexError:  # another thread was quicker
                        return
                    done.append(task())
            except BaseException as error:  # nothing can be raised through OpenMP
                failed.append(error)

        threads = min(torch.get_num_threads(), len(tasks))
        if threads > 1:
            self._parallel(_Body(work), None, threads, 0)
        else:
            work(None)
        if failed:
            raise failed[0]
        if len(done) < len(tasks):  # Ctrl-C came where a thread begins or ends, and was lost in OpenMP
            raise KeyboardInterrupt


@lru_cache(maxsize=1)
def team() -> Team | None:
    """PyTorch's threads; None where they are not of GNU OpenMP, which is Linux's."""
    if platform.system() != "Linux":
        return None
    library = _library(Path("/proc/self/maps").read_text("utf-8", errors="replace"))
    try:
        return Team(library) if library is not None else None
    except (OSError, AttributeError):
        return None


def _library(maps: str) -> Path | None:
    """PyTorch's OpenMP among the libraries that are loaded: the one in its folder, or the only one."""
    # The path is what stands behind five fields, and may have spaces in it.
    paths = {Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if "libgomp" in line}
    folder = Path(torch.__file__).parent
    own = {path for path in paths if path.is_relative_to(folder)} or paths
    return own.pop() if len(own) == 1 else None
