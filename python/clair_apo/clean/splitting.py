"""`clair-apo split`: a part of the rows for testing, by prompt, so that no prompt is on both sides.

Which side a prompt is on follows from the prompt and the seed alone: a hash of it is compared with the
share asked for. So it does not hang on the file, on the order of the rows or on what else is there, and
with a larger share, what was in the test part stays there.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clair_apo import files
from clair_apo.clean.prompts import Prompts
from clair_apo.clean.rows import Progress, RowReader, RowWriter, Spec, check_paths
from clair_apo.clean.summary import reasons
from clair_apo.errors import ClairError, UsageError
from clair_apo.shapes import Skipped
from clair_apo.terminal import one_line


def split(
    file: Spec,
    test: float = 0.02,
    seed: int = 0,
    output_dir: Spec | None = None,
    prompt_column: str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the rows of `file` to `NAME.train.SUFFIX` and `NAME.test.SUFFIX`, beside it or in
    `output_dir`, in their order and with all columns; `.parquet`, or as the input where it is of JSON
    Lines.

    About a share `test` of the prompts goes to the test part, each with all its rows. Prompts that differ
    in case, in white space or in Unicode's way to write the same text are one.

    Returns: what `clair-apo split --json` prints. `rows_in` = `train` + `test` + `skipped` (rows that
    cannot be read, or have no prompt). Raises ClairError where a part of any rows would be empty, or
    there are no prompts.
    """
    if not 0 < test < 1:
        raise UsageError(f"--test {test}: a share of the prompts, between 0 and 1")
    parts = _parts(file, output_dir)
    check_paths(file, *parts)
    reader = RowReader(file)
    prompts = Prompts(one_line(str(file)), reader.schema.names, prompt_column)
    limit = int(test * (1 << 64))
    without = Skipped(0, 0, "the row has no prompt")
    with ExitStack() as stack:
        train, tested = (RowWriter(path, reader) for path in parts)
        stack.enter_context(train)
        stack.enter_context(tested)
        for rows in reader:
            sides = [None if p is None else _place(p, seed) < limit for p in prompts.of(rows)]
            if None in sides and not without.rows:
                without.first_row = rows.first_row + sides.index(None)
            without.rows += sides.count(None)
            chosen = pa.array(sides, pa.bool_())
            tested.write(rows, chosen)
            train.write(rows, pc.invert(chosen))
            if on_progress is not None:
                on_progress(str(file), reader.rows_read, reader.total_rows)
        for writer, name, other in ((train, "train", "smaller"), (tested, "test", "larger")):
            if not writer.rows and reader.rows_read:
                raise ClairError(
                    f"{one_line(str(file))}: no row would be in the {name} part, with --test {test} "
                    f"of {reader.rows_read:,} rows. Try a {other} share, or another --seed."
                )
        for writer in (train, tested):  # both or none, even where the disk is full
            writer.finish()
    skipped = {"unreadable": reader.unreadable} if reader.unreadable else {}
    if without.rows:
        skipped["no_prompt"] = without
    return {
        "file": str(file),
        "outputs": {"train": str(parts[0]), "test": str(parts[1])},
        "test_share": test,
        "seed": seed,
        "rows_in": reader.rows_read,
        "rows_out": train.rows + tested.rows,
        "train": train.rows,
        "test": tested.rows,
        "skipped": sum(s.rows for s in skipped.values()),
        "skipped_reasons": reasons(skipped),
    }


def _place(prompt: str, seed: int) -> int:
    """Where a prompt lies, even over 0 to 2**64."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", prompt).casefold()).strip()
    digest = hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _parts(file: Spec, output_dir: Spec | None) -> tuple[Path, Path]:
    """The two files to write."""
    source = Path(os.fspath(file))
    paths = files.expand(file)
    kinds = {files.suffix(path) for path in paths}
    kind = kinds.pop() if len(kinds) == 1 else ".parquet"
    if kind not in files.OUTPUT_SUFFIXES:
        kind = ".parquet"
    if not source.exists() and output_dir is None:
        raise UsageError("--output-dir is needed where the input is a pattern of files")
    source = source.absolute() if source.name in ("", "..") else source
    folder = source.parent if output_dir is None else Path(output_dir)
    if source.exists():
        name = source.name if source.is_dir() else source.name[: -len(files.suffix(source))]
    else:
        name = paths[0].parent.absolute().name
    return folder / f"{name}.train{kind}", folder / f"{name}.test{kind}"
