"""Types of flags for argparse. Each takes what YAML and Python give as well as text."""

from __future__ import annotations

import argparse


class Waiving(argparse.Action):
    """A flag that makes others needless, those in `needless`: they are required no more, and empty where
    they are not given, be it on the command line, in a file or in a call."""

    needless: tuple[str, ...] = ()

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, *_: object
    ) -> None:
        setattr(namespace, self.dest, values)
        self.waive(parser, namespace)

    def waive(self, parser: argparse.ArgumentParser, given: argparse.Namespace | None = None) -> None:
        """`given`: what is parsed already, where that has begun."""
        for action in parser._actions:
            if action.dest in self.needless:
                action.required = False
                if action.default is None:
                    action.default = ""
                if given is not None and getattr(given, action.dest) is None:
                    setattr(given, action.dest, "")


def positive(text: object) -> int:
    """A whole number of at least 1."""
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return number


def not_negative(text: object) -> int:
    number = _whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return number


def _whole(text: object) -> int:
    try:
        return int(str(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def above_zero(text: object) -> float:
    number = not_negative_float(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def not_negative_float(text: object) -> float:
    try:
        number = float(str(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return number


def share(text: object) -> float:
    number = above_zero(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


def named(text: object) -> str:
    name = str(text).strip()
    if not name or name == "local:":
        raise argparse.ArgumentTypeError("the name is empty")
    return name
