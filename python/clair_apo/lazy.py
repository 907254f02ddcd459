"""Modules that come in when they are first used: pyarrow costs 50 MiB that most commands can do without."""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module, and imports it when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
