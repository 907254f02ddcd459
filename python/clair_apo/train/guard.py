"""What stands around a run: one run a folder, a stop that loses nothing, and failures in words."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import DistError

from clair_apo.errors import ClairError
from clair_apo.terminal import one_line
from clair_apo.train.checkpoint import Checkpoints

if TYPE_CHECKING:
    from clair_apo.train.launch import Processes
    from clair_apo.train.options import TrainOptions


class Stop:
    """Ctrl-C and SIGTERM, the first time, ask the run to stop at the next microbatch; the second time they
    do what they did before."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._asked = False
        self.by_user = False
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        return self._asked

    def __enter__(self) -> Stop:
        with contextlib.suppress(ValueError):  # not the main thread: then nobody sends signals here
            self._before = {number: signal.signal(number, self._take) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self._asked = True
        self.by_user = number == signal.SIGINT
        signal.signal(number, self._before[number])


@contextlib.contextmanager
def alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Holds the folder of a run. Raises ClairError if another run does, or if it cannot be made."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClairError(f"{one_line(str(folder))}: {error.strerror or error}") from error
    lock = FileLock(folder / ".lock", timeout=0)

    def hold() -> None:
        try:
            lock.acquire()
        except Timeout:
            raise ClairError(f"{one_line(str(folder))}: another run is at work there") from None

    processes.from_first(hold)
    try:
        yield
    finally:
        if processes.first:
            lock.release()
            (folder / ".lock").unlink(missing_ok=True)


@contextlib.contextmanager
def in_words(options: TrainOptions) -> Iterator[None]:
    """Failures of PyTorch that settings can help, as errors that name the setting."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _no_room(options) from error
    except DistError as error:
        raise _lost(options) from error
    except RuntimeError as error:
        said = str(error)
        if "can't allocate memory" in said or "not enough memory" in said:
            raise _no_room(options) from error
        if "NCCL" in said or "gloo" in said.lower() or "connection closed by peer" in said.lower():
            raise _lost(options) from error
        raise


def _no_room(options: TrainOptions) -> ClairError:
    budget = options.tokens_per_microbatch
    now = f" (now {budget})" if budget else ""
    return ClairError(
        f"out of memory. Lower --tokens-per-microbatch{now} or --activation-budget first, then "
        "--max-length; --sharding fsdp spreads weights over processes, --lora-rank trains adapters only. "
        f"{last_checkpoint(options)}"
    )


def _lost(options: TrainOptions) -> ClairError:
    # In the same words in all processes that are left.
    return ClairError(
        "another process of this run was lost: it failed, or was killed (by a machine out of memory, for "
        f"one). {last_checkpoint(options)}"
    )


def last_checkpoint(options: TrainOptions) -> str:
    """Which one there is to go on from, as a sentence."""
    found = Checkpoints(options.directory / "checkpoints", options.save_total_limit).whole()
    if not found:
        return "There is no checkpoint yet."
    return f"The last checkpoint stands: {one_line(str(found[-1]))}; --resume goes on from it."
