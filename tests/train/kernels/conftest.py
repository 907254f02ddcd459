"""Kernels run in Triton's interpreter here, on CPU tensors.

Triton looks at TRITON_INTERPRET where a kernel is defined, those of its own library too. So it and all
kernels of the package are imported with the switch set, before any test of this folder, and the switch is
set again while such a test runs. What compiles kernels does so in a process of its own (`compiling`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path
from unittest import mock

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # tiny_models and the other helpers

SWITCH = "TRITON_INTERPRET"

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    with mock.patch.dict(os.environ, {SWITCH: "1"}):
        import triton.language
        from triton.runtime.interpreter import InterpretedFunction

        from clair_apo.train import kernels

        for module in pkgutil.walk_packages(kernels.__path__, kernels.__name__ + "."):
            importlib.import_module(module.name)
    if not isinstance(triton.language.sum, InterpretedFunction):
        raise RuntimeError(f"triton was imported before {__file__} could set {SWITCH}")


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")


@pytest.fixture
def compiling() -> dict[str, str]:
    """The environment of a process that compiles kernels in place of interpreting them."""
    return {name: value for name, value in os.environ.items() if name != SWITCH}
