"""The methods: each is only its plan of calls and its choice. `--method` names them."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence

from clair_apo.build.draft import Answer, Draft
from clair_apo.build.methods.base import Method
from clair_apo.build.methods.clair import Clair
from clair_apo.build.methods.off_policy_judge import OffPolicyJudge
from clair_apo.build.methods.on_policy_judge import OnPolicyJudge
from clair_apo.build.methods.stronger_preferred import StrongerPreferred
from clair_apo.build.roles import JUDGE, MODEL, REVISER, STRONGER
from clair_apo.build.rows import InputRow
from clair_apo.build.talk import Talk
from clair_apo.errors import ClairError, UsageError

# What a method of one's own needs is here, too.
__all__ = [
    "BUILT_IN",
    "JUDGE",
    "MODEL",
    "REVISER",
    "STRONGER",
    "Answer",
    "Draft",
    "InputRow",
    "Method",
    "Talk",
    "load",
]

BUILT_IN: dict[str, type[Method]] = {
    method.name: method for method in (Clair, OnPolicyJudge, OffPolicyJudge, StrongerPreferred)
}
# A name stands in file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def load(names: Sequence[str]) -> list[Method]:
    """The methods of these names; `module:Class` is one of the user's own, found as Python finds modules or
    in the working folder.

    Raises UsageError for what is no method or stands there twice, ClairError where its module fails.
    """
    methods = [BUILT_IN[name]() if name in BUILT_IN else _own(name) for name in names]
    for number, method in enumerate(methods):
        if method.name in [other.name for other in methods[:number]]:
            raise UsageError(f"--method: {method.name} stands there twice")
    return methods


def _own(name: str) -> Method:
    module_name, _, class_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # a script's own folder is on the path, the working folder is not
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.partition(".")[0] == error.name.partition(".")[0]:
            raise UsageError(f"--method {name}: there is no module {error.name!r}") from error
        raise ClairError(f"--method {name}: {error}") from error
    except Exception as error:
        raise ClairError(f"--method {name}: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(
            f"--method {name}: {module_name} has no class {class_name!r} that is a "
            "clair_apo.build.methods.Method"
        )
    if not isinstance(getattr(found, "name", None), str) or not _NAME.fullmatch(found.name):
        raise UsageError(
            f"--method {name}: its `name` must be of letters, digits, - and _, since files are called by it"
        )
    if unknown := sorted({*found.asks, *found.may_ask} - {MODEL, REVISER, STRONGER, JUDGE}):
        raise UsageError(f"--method {name}: there is no role {unknown[0]!r} to ask")
    if found.name in BUILT_IN:
        raise UsageError(f"--method {name}: {found.name!r} is the name of a method that comes along")
    return found()
