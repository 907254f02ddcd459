from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from clair_apo.errors import UsageError
from clair_apo.train import checkpoint
from clair_apo.train.checkpoint import Checkpoints, Progress

SETTINGS = {"beta": 0.1, "seed": 0}


def made(seed: int) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = tiny_model("Llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def test_weights_moments_and_random_states_come_back_bit_by_bit(tmp_path: Path) -> None:
    model, optimizer = made(1)
    checkpoints = Checkpoints(tmp_path, limit=2)
    path = checkpoints.save(Progress(3, 1000, 2.5), model, optimizer, SETTINGS)
    drawn = torch.rand(3)
    other, moments = made(2)
    assert checkpoint.load(path, other, moments) == Progress(3, 1000, 2.5)
    assert torch.equal(torch.rand(3), drawn)
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, moments.state[b][key]), (name, key)


def test_the_newest_ones_stay_and_half_written_ones_are_swept(tmp_path: Path) -> None:
    model, optimizer = made(1)
    checkpoints = Checkpoints(tmp_path, limit=2)
    assert checkpoints.find("newest") is None
    (tmp_path / ".step-00000009.tmp").mkdir()
    (tmp_path / "step-00000099").mkdir()  # no state.json: not whole
    for step in (1, 2, 10):
        checkpoints.save(Progress(step, 0, 0.0), model, optimizer, SETTINGS)
    assert [p.name for p in checkpoints.whole()] == ["step-00000002", "step-00000010"]
    assert not list(tmp_path.glob(".*"))
    assert checkpoints.find("newest") == tmp_path / "step-00000010"
    with pytest.raises(UsageError, match=r"state\.json"):
        checkpoints.find(str(tmp_path / "step-00000099"))


def test_going_on_from_an_older_one_leaves_no_later_ones(tmp_path: Path) -> None:
    model, optimizer = made(1)
    checkpoints = Checkpoints(tmp_path, limit=2)
    for step in (5, 9):
        checkpoints.save(Progress(step, 0, 0.0), model, optimizer, SETTINGS)
    checkpoints.save(Progress(6, 0, 0.0), model, optimizer, SETTINGS)
    assert [p.name for p in checkpoints.whole()] == ["step-00000005", "step-00000006"]


def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = made(1)
    checkpoints = Checkpoints(tmp_path, limit=1)
    checkpoints.save(Progress(1, 0, 0.0), model, optimizer, SETTINGS)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(Exception, match=r"step 2 could not be written: No space left.*stands"):
        checkpoints.save(Progress(2, 0, 0.0), model, optimizer, SETTINGS)
    assert [p.name for p in checkpoints.whole()] == ["step-00000001"]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    model, optimizer = made(1)
    path = Checkpoints(tmp_path, limit=1).save(Progress(1, 0, 0.0), model, optimizer, SETTINGS)
    checkpoint.check_settings(path, SETTINGS)
    with pytest.raises(UsageError, match=r"beta was 0\.1 and is 0\.2"):
        checkpoint.check_settings(path, {**SETTINGS, "beta": 0.2})
