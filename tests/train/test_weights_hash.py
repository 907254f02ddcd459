"""A hash that is kept is that of the weights that are there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from clair_apo.train import weights
from clair_apo.train.weights import known_hash, weights_hash

LATER = 3600 * 10**9  # nobody can set a file's ctime back, so models are read an hour from now


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_model("Llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that were read whole."""
    found: list[Any] = []

    def counted(model: Any) -> str:
        found.append(model)
        return weights_hash(model)

    monkeypatch.setattr(weights, "weights_hash", counted)
    return found


def known(folder: Path | None, model: Any, dtype: torch.dtype = torch.float32, later: int = LATER) -> str:
    return known_hash(model, dtype, folder, time.time_ns() + later)


def test_files_that_have_not_changed_are_hashed_once(folder: Path, hashed: list[Any]) -> None:
    model = tiny_model("Llama")
    assert known(folder, model) == known(folder, model) == weights_hash(model)
    assert len(hashed) == 1
    half = tiny_model("Llama").bfloat16()
    assert known(folder, half, torch.bfloat16) == weights_hash(half)
    assert known(folder, model) == weights_hash(model)


def test_a_change_is_noticed_whatever_is_done_to_hide_it(folder: Path, hashed: list[Any]) -> None:
    model, file = tiny_model("Llama"), folder / "model.safetensors"
    known(folder, model)
    before = file.stat()
    for number, change in enumerate(("in place", "replaced"), 1):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        if change == "in place":
            with file.open("r+b") as stream:
                stream.write(content)
        else:
            other = folder / "other"
            other.write_bytes(content)
            other.rename(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = file.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        assert known(folder, model) == weights_hash(model)
        assert len(hashed) == 1 + number


def test_hashes_are_not_kept_where_files_do_not_say_enough(folder: Path, hashed: list[Any]) -> None:
    model = tiny_model("Llama")
    known(folder, model, later=0)  # written just now: it may have changed again since it was read
    known(None, model)
    (folder / "adapter_config.json").write_text("{}")
    known(folder, model)
    (folder / "adapter_config.json").unlink()
    shutil.move(folder / "model.safetensors", folder / "elsewhere")
    known(folder, model)
    assert len(hashed) == 4
    assert not (folder.parent / "cache").exists()


def test_a_damaged_cache_is_made_anew(folder: Path, hashed: list[Any]) -> None:
    model = tiny_model("Llama")
    known(folder, model)
    (kept,) = (folder.parent / "cache").rglob("*.json")
    for content in ("", "[]", "{}", '{"files": 1}'):
        kept.write_text(content)
        assert known(folder, model) == weights_hash(model)
    assert known(folder, model) == weights_hash(model)
    assert len(hashed) == 5
