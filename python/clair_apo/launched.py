"""The processes that a launcher (torchrun, accelerate launch) started for one command, as one command.

They meet at the launcher's key-value store, before they are a process group and after one of them is lost.
Importing this is cheap.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from datetime import timedelta
from typing import Any

# Seconds that a process which failed waits for what the others have to say. Those that failed for the same
# reason come soon; those that still run, never.
PATIENCE = 5.0


def place() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def store(seconds: float) -> Any:
    """A connection of its own to the launcher's store (one that others use may be waiting), which gives up
    after so many seconds. Raises RuntimeError (of PyTorch) or KeyError where there is none."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=seconds)
    found = TCPStore(host, port, is_master=False, timeout=limit, wait_for_workers=False)
    # A launcher that starts the processes once more keeps its store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"clair-apo/{attempt}", found)


def in_one_voice(message: str) -> str | None:
    """What this process has to say where it fails with `message`: of those that fail with the same words
    one says them, with the ranks of all of them unless all processes do; None in the others."""
    rank, count = place()
    if count == 1:
        return message
    for number in (signal.SIGINT, signal.SIGTERM):  # a launcher ends those that are left when one is gone
        with contextlib.suppress(ValueError):
            signal.signal(number, signal.SIG_IGN)
    try:
        others = store(PATIENCE)
        found = _messages(others, rank, count, message)
        digest = hashlib.sha256(message.encode()).hexdigest()
        if others.add(f"said/{digest}", 1) > 1:
            return None
    except Exception:  # no torch, or no store any more: better said twice than not at all
        return f"rank {rank}: {message}"
    same = [str(number) for number, words in found.items() if words == message]
    if len(same) == count:
        return message
    return f"rank{'s' if len(same) > 1 else ''} {', '.join(same)}: {message}"


def _messages(others: Any, rank: int, count: int, message: str) -> dict[int, str]:
    """What each process that has failed says, once all have, or a while after this one did."""
    others.set(f"failed/{rank}", message)
    names = {number: f"failed/{number}" for number in range(count)}
    deadline = time.monotonic() + PATIENCE
    while not others.check(list(names.values())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {number: others.get(name).decode() for number, name in names.items() if others.check([name])}
