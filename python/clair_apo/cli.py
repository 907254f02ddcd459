"""The commands, thin: read the flags, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from clair_apo import launched
from clair_apo.errors import (
    EXIT_CANNOT_GO_ON,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    ClairError,
    Terminated,
    UsageError,
)
from clair_apo.flags import Waiving

DESCRIPTION = """CLAIR preference pairs and APO training.

A model's answers are revised as little as possible by a stronger model: the revision is chosen, the
original is rejected."""


# Commands whose memory stays flat over files of any size.
STREAMING = ("filter", "convert", "split", "decontaminate", "dedup")


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what its help says, its flags, and what runs it."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _commands() -> dict[str, Command]:
    from clair_apo.build.options import add_arguments
    from clair_apo.clean import command as clean
    from clair_apo.clean import dedup_command
    from clair_apo.report.command import diff_arguments, run_diff, run_stats, stats_arguments
    from clair_apo.train.advise_command import advise_arguments, run_advise
    from clair_apo.train.options import add_arguments as train_arguments

    def run_build(args: argparse.Namespace) -> int:
        from clair_apo.build.command import run_build

        return run_build(args)

    def run_train(args: argparse.Namespace) -> int:
        from clair_apo.train.command import run_train

        return run_train(args)

    def run_templates(args: argparse.Namespace) -> int:
        from clair_apo.build.command import run_templates

        return run_templates(args)

    return {
        "build-pairs": Command("make preference pairs from prompts", add_arguments, run_build),
        "stats": Command("how contrastive are the pairs of a file", stats_arguments, run_stats),
        "diff": Command("what changed within a pair", diff_arguments, run_diff),
        "filter": Command(
            "keep the rows that a condition holds for", clean.filter_arguments, clean.run_filter
        ),
        "convert": Command(
            "write pairs in the shape that another tool reads", clean.convert_arguments, clean.run_convert
        ),
        "split": Command("split a table by prompt", clean.split_arguments, clean.run_split),
        "decontaminate": Command(
            "leave out rows that hold a benchmark's items",
            clean.decontaminate_arguments,
            clean.run_decontaminate,
        ),
        "dedup": Command(
            "leave out rows that are the same, or nearly",
            dedup_command.dedup_arguments,
            dedup_command.run_dedup,
        ),
        "train": Command("train a model on preference pairs", train_arguments, run_train),
        "advise": Command("which of APO-zero and APO-down suits pairs", advise_arguments, run_advise),
        "templates": Command(
            "list the revision templates, or show one", _templates_arguments, run_templates
        ),
    }


def _templates_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one")
    parser.epilog = "example:\n  clair-apo templates paper > mine.txt"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the whole usage is behind --help."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(args or ())
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # told here, where the command's own flags are known
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        from clair_apo.terminal import safe

        # All processes of a launch have the same command line.
        if not self.prog.endswith(" train") or launched.place()[0] == 0:
            print(
                f"{self.prog}: {safe(message)}{self._meant()}\n`{self.prog} --help` lists the flags.",
                file=sys.stderr,
            )
        raise SystemExit(EXIT_USAGE)

    def _meant(self) -> str:
        """The flag or command that the first unknown word is near to: often the true cause, as where a
        required flag is mistyped."""
        known = [option for action in self._actions for option in action.option_strings]
        words = [word.partition("=")[0] for word in self._given if word.startswith("--")]
        if self._subparsers is not None:
            commands = next(a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction))
            known += commands
            words = list(self._given[:1])
        for word in words:
            if word not in known and (near := difflib.get_close_matches(word, known, 1, 0.6)):
                return f"; did you mean {near[0]}?"
        return ""


class _Version(argparse.Action):
    def __call__(self, *_: object, **__: object) -> NoReturn:
        import clair_apo

        print(f"clair-apo {clair_apo.__version__}")
        raise SystemExit(0)


def _parser(commands: Mapping[str, Command]) -> tuple[_Parser, dict[str, _Parser]]:
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "clair-apo",
        description=DESCRIPTION,
        formatter_class=plain,
        allow_abbrev=False,
        epilog="example:\n  clair-apo build-pairs --input prompts.parquet\n\n"
        "`clair-apo COMMAND --help` tells more about each.",
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found = {}
    for name, command in commands.items():
        sub = subparsers.add_parser(
            name,
            help=command.help,
            description=command.help,
            formatter_class=plain,
            allow_abbrev=False,
        )
        command.arguments(sub)
        group = sub.add_argument_group("every command")
        group.add_argument(
            "--config",
            metavar="FILE.yaml",
            help="any flag of this command under its name; the command line wins",
        )
        group.add_argument(
            "--json", action="store_true", help="print one JSON document on stdout and nothing else"
        )
        group.add_argument("--quiet", action="store_true", help="no bar and no remarks")
        found[name] = sub
    return parser, found


def namespace(command: str, flags: Mapping[str, Any]) -> argparse.Namespace:
    """The parsed flags of a command from Python values by name; raises TypeError for an unknown flag,
    UsageError for an impossible value or a required one that is missing."""
    _, subparsers = _parser(_commands())
    parser = subparsers[command]
    known = _flags(parser)
    values = argparse.Namespace(**{a.dest: a.default for a in parser._actions if a.dest != "help"})
    given = set()
    for name, value in flags.items():
        action = known.get(name.rstrip("_").replace("_", "-"))
        if action is None:
            raise TypeError(f"{command.replace('-', '_')} has no flag {name!r}{_nearest(name, known)}")
        if value is not None:
            setattr(values, action.dest, _value(action, value, name))
            given.add(action.dest)
            if value is not False and isinstance(action, Waiving):
                action.waive(parser, values)
    for action in known.values():
        if action.required and action.dest not in given:
            raise UsageError(f"{action.dest} is missing")
    return values


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Flags by their long name without the dashes."""
    return {
        option[2:]: action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", "--config")
    }


def _apply_config(parser: argparse.ArgumentParser, file: str) -> None:
    """Makes the values of a YAML file the defaults of `parser`."""
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text("utf-8"))
    except OSError as error:
        raise ClairError(f"{file}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not YAML: {error}") from error
    if content is None:
        return
    if not isinstance(content, dict):
        raise UsageError(f"{file}: flags by name were expected, such as `concurrency: 32`")
    known = _flags(parser)
    for key, value in content.items():
        action = known.get(str(key).replace("_", "-"))
        if action is None:
            raise UsageError(f"{file}: unknown key {str(key)!r}{_nearest(str(key), known)}")
        if value is not None:
            action.default = _value(action, value, f"{file}: {key}")
            action.required = False
            if value is not False and isinstance(action, Waiving):
                action.waive(parser)


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name.replace("_", "-"), known, 1, 0.5)
    return f"; the nearest is {near[0]!r}" if near else ""


def _value(action: argparse.Action, value: object, name: str) -> Any:
    """A value of a file or a call as the flag would have it. Raises UsageError."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{name}: {value!r} is neither true nor false")
        return value
    if action.nargs == "?" and isinstance(value, bool):
        return action.const if value else action.default
    if action.nargs == "+":
        values = value if isinstance(value, list | tuple) else [value]
        return [_one_value(action, each, name) for each in values]
    return _one_value(action, value, name)


def _one_value(action: argparse.Action, value: object, name: str) -> Any:
    try:
        # Every `type` of ours takes what YAML and Python give as well as text.
        typed = action.type(value) if callable(action.type) else _text(value)  # type: ignore[arg-type]
    except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from error
    if action.choices is not None and typed not in action.choices:
        raise UsageError(f"{name}: {typed!r} is not one of {', '.join(map(str, action.choices))}")
    return typed


def _text(value: object) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise TypeError(f"{value!r} is not text")


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point of `clair-apo`. Returns the exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    commands = _commands()
    parser, subparsers = _parser(commands)
    fail = _fail_together if argv[:1] == ["train"] else _fail
    try:
        with _terminable():
            return _run(argv, commands, parser, subparsers)
    except Terminated:
        # As the default would: whoever waits for us is to see the signal.
        os.kill(os.getpid(), signal.SIGTERM)
        return EXIT_TERMINATED
    except ClairError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(_os_error(error), EXIT_CANNOT_GO_ON)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("CLAIR_APO_KERNEL"):
            return fail(str(error), EXIT_USAGE)
        if isinstance(error.__cause__, KeyboardInterrupt):  # it came while a class was made
            return fail("interrupted", EXIT_INTERRUPTED)
        return fail(
            f"unexpected {type(error).__name__}: {error}\nThis is a mistake in clair-apo; "
            "CLAIR_APO_DEBUG=1 shows where.",
            EXIT_CANNOT_GO_ON,
        )


def _run(
    argv: list[str], commands: Mapping[str, Command], parser: _Parser, subparsers: Mapping[str, _Parser]
) -> int:
    config = _config_of(argv)
    if config is not None and argv[0] in subparsers:
        _apply_config(subparsers[argv[0]], config)
    args = parser.parse_args(argv)
    if args.command in STREAMING:
        from clair_apo.memory import spare_memory, spare_pandas

        spare_memory()
        spare_pandas()
    status = commands[args.command].run(args)
    sys.stdout.flush()
    return status


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it, SIGTERM raises Terminated, so that files that are not whole are put away; a second one
    kills at once, and so does one after it. Leaves the signal alone where somebody else handles it."""

    def raises(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, raises)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _config_of(argv: Sequence[str]) -> str | None:
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{where}the disk is full. Make room and run the same command again; what was finished is kept."
        )
    return f"{where}{error.strerror or error}"


def _fail(message: str | None, status: int) -> int:
    from clair_apo.terminal import safe

    if os.environ.get("CLAIR_APO_DEBUG"):
        print(safe(traceback.format_exc()), file=sys.stderr)
    if message is not None:
        print(f"clair-apo: {safe(message)}", file=sys.stderr)
    return status


def _fail_together(message: str, status: int) -> int:
    """For a command that runs in several processes at once."""
    return _fail(launched.in_one_voice(message), status)


if __name__ == "__main__":
    raise SystemExit(main())
