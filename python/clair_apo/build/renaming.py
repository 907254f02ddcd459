"""The names of tables where a run goes on with more methods than before, or fewer.

Of one method the pairs stand in `pairs.parquet`, of several in `pairs.METHOD.parquet`. An earlier start's
table under a name that no longer fits would be read as one of this start, or be overwritten with the pairs
of another method; so it gets the name that this start would give it. No table is removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from clair_apo import files
from clair_apo.build.options import BuildOptions
from clair_apo.errors import ClairError, UsageError


@dataclass(frozen=True, slots=True)
class Renaming:
    """What is to be done before tables are written. `moves` are old names and new ones, in their order;
    `tables` are all that there will be, by method; `said` are the words for it."""

    moves: list[tuple[Path, Path]]
    tables: dict[str, list[str]]
    said: list[str]


def plan(options: BuildOptions, methods: Sequence[str], inputs: Sequence[Path]) -> Renaming:
    """What this start of `methods` makes of the tables that stand beside its output.

    Raises UsageError where a file of somebody else has the name of one, or one is the input.
    """
    folder = options.output_path.parent
    known = _read(_book(options))
    alone = methods[0] if len(methods) == 1 else None
    new = {method: options.tables(method) for method in methods}
    moves: list[tuple[Path, Path]] = []
    said: list[str] = []
    tables = {method: [path.name for path in astuple(new[method])] for method in methods}
    # Who takes the name without a method comes last: until then another table may have it.
    for method, names in sorted(known.items(), key=lambda item: item[0] == alone):
        before = [folder / name for name in names]
        ending = files.suffix(before[0])
        if method in new and ending == files.suffix(options.output_path):
            after = astuple(new[method])
        elif method == alone:
            continue  # another format was asked for, in a file of its own
        else:
            after = astuple(options.tables_of(method, ending))
        if method not in methods:
            tables[method] = [path.name for path in after]
        wanted = [(old, to) for old, to in zip(before, after, strict=True) if old != to and old.exists()]
        moves += wanted
        if wanted:
            said.append(f"{before[0]} is {after[0]} from now on, since its pairs are those of {method}")
        elif method not in methods and before[0].exists():
            said.append(f"{before[0]} holds pairs of an earlier start with {method}, and stays as it is")
    ours = {folder / name for names in known.values() for name in names}
    ours |= {path for each in new.values() for path in astuple(each)}
    for old, to in moves:
        if to.exists() and to not in ours:
            raise UsageError(
                f"{old} would have to be {to} now, and there is such a file that is not of this run; move "
                "it away, or choose another --output"
            )
        if old.resolve() in {path.resolve() for path in inputs}:
            raise UsageError(f"{old} is the input and would get another name; choose another --output")
    return Renaming(moves, tables, said)


def carry_out(renaming: Renaming, options: BuildOptions, say: Callable[[str], None]) -> None:
    """Renames, and notes which tables there are; to be called before they are written."""
    for old, new in renaming.moves:
        old.replace(new)
    with files.replacing(_book(options)) as path:
        path.write_text(json.dumps(renaming.tables, indent=1) + "\n", "utf-8")
    for words in renaming.said:
        say(words)


def _book(options: BuildOptions) -> Path:
    return options.beside(".run") / "tables.json"


def _read(path: Path) -> dict[str, list[str]]:
    """The names of pairs, dropped pairs and failures by method; none where nothing is noted."""
    if not path.exists():
        return {}
    try:
        found: dict[str, list[str]] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ClairError(
            f"{path} cannot be read ({error}). It says whose pairs stand in which table; remove it, and "
            "look at the tables beside the output yourself"
        ) from error
    return found
