"""Errors that are meant for people: the command line prints their text, never a traceback."""

from __future__ import annotations

EXIT_OK = 0
EXIT_CANNOT_GO_ON = 1
EXIT_USAGE = 2
EXIT_STOPPED_EARLY = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM came: like KeyboardInterrupt no error, but everything open is put away on its way out."""


class ClairError(Exception):
    """Something a person can act on. `exit_code` is the exit status of the command it ends."""

    def __init__(self, message: str, exit_code: int = EXIT_CANNOT_GO_ON) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(ClairError):
    """A flag, a value or a combination of them that cannot be meant (exit status 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_USAGE)


class StoppedEarly(ClairError):
    """The run stopped before its end; the same command goes on from there (exit status 3)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_STOPPED_EARLY)
