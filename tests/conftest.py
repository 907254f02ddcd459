"""Fixtures for all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from cli import write_prompts

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project. Without it a test is skipped, but not on CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("../shared/data is missing, and CI is set")
        pytest.skip("../shared/data is not there")
    return folder


@pytest.fixture(autouse=True)
def _no_endpoint_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may call a server that the environment of whoever runs it names."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return write_prompts(
        tmp_path / "in.parquet",
        prompt=["one?", "two?", "three?"],
        response=["First.", "Second.", "Third."],
        topic=["a", None, "c"],
    )
