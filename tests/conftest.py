"""Fixtures for all tests."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from cli import ROOT, write_prompts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is given the most time comes first: no core is then left waiting for one long test, and a costly
    fixture of a module is made once, since cores take from the end of each other's tests."""

    def allowed(item: pytest.Item) -> float:
        mark = item.get_closest_marker("timeout")
        return float(mark.args[0]) if mark else 0.0

    items.sort(key=allowed, reverse=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project. Without it a test is skipped, but not on CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("../shared/data is missing, and CI is set")
        pytest.skip("../shared/data is not there")
    return folder


@pytest.fixture(scope="session")
def tiktoken_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiktoken's cache, filled from the vocabularies that the crate bpe-openai carries."""
    registry = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry" / "src"
    folder = tmp_path_factory.mktemp("tiktoken")
    for name in ("cl100k_base", "o200k_base"):
        found = sorted(registry.glob(f"*/bpe-openai-*/data/{name}.tiktoken.gz"))
        if not found:
            pytest.skip("the crate's sources, which hold tiktoken's vocabularies, are not here")
        url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
        key = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
        (folder / key).write_bytes(gzip.decompress(found[-1].read_bytes()))
    return folder


@pytest.fixture(autouse=True)
def _no_endpoint_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may call a server that the environment of whoever runs it names."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return write_prompts(
        tmp_path / "in.parquet",
        prompt=["one?", "two?", "three?"],
        response=["First.", "Second.", "Third."],
        topic=["a", None, "c"],
    )
