"""Which weights a model has: a hash of all of them, which is found again without reading them.

A hash of 16 GB takes longer than all else at a start, so it is kept in the user's cache under what the file
system says of the model's files: names, sizes, inodes, and the times of the last change. Among these is
ctime, which no program can set: whatever is written to a file, and whatever takes its place, has another.
A hash is not kept, nor a kept one believed,

- where a file was changed since shortly before the model was read: it may have been in between, or within
  the same tick of the file system's clock;
- where not all weights come from these files: some are drawn at random, or come from another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clair_apo import files
from clair_apo.train.reference import cache_folder

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = re.compile(r"(pytorch_)?model.*\.(safetensors|bin)")
# Nanoseconds that clocks of file systems may be coarse, or behind.
TICK = 3_000_000_000


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def known_hash(model: nn.Module, dtype: torch.dtype, folder: Path | None, began: int) -> str:
    """`weights_hash` of a model in `dtype` that was read from `folder`, where a kept one holds that.

    `folder`: None where not all of it came from there; `began`: when reading began, as `time.time_ns`.
    """
    state = folder and _state(folder, began)
    if not folder or state is None:
        return weights_hash(model)
    # How files become weights, and under which names, is for transformers to say.
    from transformers import __version__

    place = hashlib.sha256(f"{folder} {dtype} {__version__}".encode()).hexdigest()[:32]
    path = cache_folder().parent / "weights" / f"{place}.json"
    try:
        kept = json.loads(path.read_text("utf-8"))
        if kept["files"] == state:
            return str(kept["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = weights_hash(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            temporary.write_text(json.dumps({"hash": found, "files": state}), "utf-8")
    except OSError:
        pass  # the next start takes as long again
    return found


def _state(folder: Path, began: int) -> list[list[object]] | None:
    """What changes with the files in `folder`; None where that does not say which weights there are."""
    try:
        entries = [(entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file()]
    except OSError:
        return None
    newest = max((max(s.st_ctime_ns, s.st_mtime_ns) for _, s in entries), default=began)
    whole = any(WEIGHTS.fullmatch(name) for name, _ in entries)
    adapters = any(name == "adapter_config.json" for name, _ in entries)  # on weights that lie elsewhere
    if newest > began - TICK or not whole or adapters:
        return None
    return sorted(
        [name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in entries
    )
