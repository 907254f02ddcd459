"""`clair-apo convert --to hub`: a pair table as the folder of a dataset on the Hub, with its card.

Rows and columns stay as they are, so each pair keeps its origin: method, template, models and verdicts.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from clair_apo import files
from clair_apo.clean.rows import Progress, RowReader, RowWriter, Spec, check_paths
from clair_apo.clean.summary import reasons
from clair_apo.errors import ClairError, UsageError
from clair_apo.tables import is_pair_table
from clair_apo.terminal import one_line

DATA = Path("data") / "train-00000-of-00001.parquet"
CARD = "README.md"
# Where a table does not name a method or a judge.
UNKNOWN = "unknown"
# Names of one kind that the card lists; of a hundred models nobody reads more.
SHOWN = 20
# The measures that the card tells, by column; those of the paper's table come first.
_MEASURES = {
    "jaccard": ("Jaccard, words", ".3f"),
    "levenshtein": ("Levenshtein, characters", ",.0f"),
    "levenshtein_ratio": ("edit ratio", ".3f"),
    "chosen_chars": ("characters of chosen", ",.0f"),
    "rejected_chars": ("characters of rejected", ",.0f"),
}
# What is counted, by method, for the card.
_COUNTED = ("template", "chosen_model", "rejected_model", "judge_winner")
_RECIPES = {
    "clair": "chosen is a stronger model's revision of the model's own answer, which is rejected (CLAIR)",
    "stronger_preferred": "chosen is a stronger model's fresh answer, rejected is the model's own",
    "on_policy_judge": "both are answers of the model itself, ranked by a judge",
    "off_policy_judge": "both are answers of other models, ranked by ratings or a judge",
}
# As the Hub names them, each below its number of rows.
_SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
}


@dataclass(slots=True)
class _Method:
    """What is told of the pairs of one method. `sums` are (values, sum) of each measure."""

    pairs: int = 0
    sums: dict[str, tuple[int, float]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    judges: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        self.pairs += 1
        for name in _MEASURES:
            if row[name] is not None:
                number, total = self.sums.get(name, (0, 0.0))
                self.sums[name] = number + 1, total + row[name]
        for name in _COUNTED:
            if row.get(name) is not None:
                self.counts.setdefault(name, Counter())[row[name]] += 1
        self.flags.update(flag for flag in row["flags"] or () if flag)
        said = row.get("judge_verdicts") or ()
        self.judges.update({verdict["judge"] or UNKNOWN for verdict in said if verdict})

    def mean(self, name: str) -> str:
        if name not in self.sums:
            return "–"
        number, total = self.sums[name]
        return format(total / number, _MEASURES[name][1])


def write_folder(
    file: Spec,
    output: Spec,
    push_to: str | None = None,
    licence: str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the pair tables of `file` into the folder `output`: `data/train-00000-of-00001.parquet`, and
    `README.md`, the card, which names `licence` if there is one. With `push_to`, `owner/name`, uploads both
    to the Hub as a private dataset.

    Returns: what `clair-apo convert --to hub --json` prints. `rows_in` = `pairs` + `skipped`.

    Raises ClairError where the input cannot be read or is no pair table, the folder holds something else,
    or the Hub does not take it.
    """
    folder = Path(output)
    reader = RowReader(file)
    if not is_pair_table(reader.schema):
        raise ClairError(
            f"{one_line(str(file))}: is no table of `clair-apo build-pairs`, and the card is made of the "
            "columns of those"
        )
    if "reason" in reader.schema.names:
        raise ClairError(f"{one_line(str(file))}: holds pairs that build-pairs has dropped")
    _check_folder(folder)
    (folder / DATA.parent).mkdir(parents=True, exist_ok=True)
    check_paths(file, folder / DATA)
    methods: dict[str, _Method] = {}
    wanted = ("method", "flags", "judge_verdicts", *_MEASURES, *_COUNTED)
    with RowWriter(folder / DATA, reader) as writer:
        for rows in reader:
            writer.write(rows)
            told = rows.batch.select([n for n in wanted if n in rows.batch.schema.names])
            for row in pa.Table.from_batches([told]).to_pylist():
                methods.setdefault(row["method"] or UNKNOWN, _Method()).add(row)
            if on_progress is not None:
                on_progress(str(file), reader.rows_read, reader.total_rows)
    with files.replacing(folder / CARD) as path:
        name = push_to or folder.absolute().name
        path.write_text(card(name, methods, reader.schema.names, licence), "utf-8")
    if push_to is not None:
        push(folder, push_to)
    bad = reader.unreadable
    return {
        "file": str(file),
        "output": str(folder),
        "to": "hub",
        "rows_in": reader.rows_read,
        "rows_out": writer.rows,
        "pairs": writer.rows,
        "skipped": bad.rows if bad else 0,
        "skipped_reasons": reasons({"unreadable": bad} if bad else {}),
    }


def card(name: str, methods: dict[str, _Method], columns: list[str], licence: str | None = None) -> str:
    """The card as text: YAML between two lines of dashes, then Markdown."""
    pairs = sum(method.pairs for method in methods.values())
    front = {
        "pretty_name": one_line(name),
        **({"license": one_line(licence)} if licence else {}),
        "task_categories": ["text-generation"],
        "size_categories": [next((size for most, size in _SIZES.items() if pairs < most), "10M<n<100M")],
        "tags": ["preference-optimization", "dpo", "clair-apo"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
        ],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000) + "---",
        "",
        f"# {_md(name)}",
        "",
        f"{pairs:,} preference pairs made with clair-apo, after [Anchored Preference Optimization and "
        "Contrastive Revisions](https://arxiv.org/abs/2408.06266). `prompt`, `chosen` and `rejected` are "
        "lists of messages, as TRL's trainers take them; the other columns say where each pair comes from.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'pairs = load_dataset({one_line(name)!a}, split="train")  # this folder, or its name on the Hub',
        "```",
        "",
        "## Recipe",
        "",
    ]
    for method, told in methods.items():
        recipe = _RECIPES.get(method, "a method of its maker's own")
        lines.append(f"- `{_md(method)}`, {told.pairs:,} pairs: {recipe}.")
        for column, words in (
            ("chosen_model", "chosen by"),
            ("rejected_model", "rejected by"),
            ("template", "template of the reviser"),
        ):
            if found := told.counts.get(column):
                lines.append(f"  - {words} {_counted(found, told.pairs)}")
        if told.judges:
            lines.append(f"  - judged by {_counted(told.judges, told.pairs)}")
        if won := told.counts.get("judge_winner"):
            lines.append(f"  - the judges' winner: {_counted(won, told.pairs)}")
        if told.flags:
            lines.append(f"  - flags: {_counted(told.flags, told.pairs)}")
    heads = [f"`{_md(method)}`" for method in methods]
    lines += [
        "",
        "## Contrastiveness",
        "",
        "Means over the pairs. More words in common and fewer edits say that chosen differs from rejected "
        "in little else than what makes it better.",
        "",
        f"| | {' | '.join(heads)} |",
        "|---|" + "---:|" * len(heads),
        f"| pairs | {' | '.join(f'{told.pairs:,}' for told in methods.values())} |",
    ]
    for column, (words, _) in _MEASURES.items():
        lines.append(f"| {words} | {' | '.join(told.mean(column) for told in methods.values())} |")
    return "\n".join([*lines, *_licence(methods, columns, licence), ""])


def _licence(methods: dict[str, _Method], columns: list[str], licence: str | None) -> list[str]:
    """What is to be said of the licence: whose texts these are."""
    counts = [
        told.counts.get(side, ())
        for told in methods.values()
        for side in ("chosen_model", "rejected_model")
    ]
    models = sorted({model for found in counts for model in found})
    shown = ", ".join(f"`{_md(model)}`" for model in models[:SHOWN])
    return [
        "",
        "## Licence",
        "",
        (
            f"`{_md(licence)}`."
            if licence
            else "None is set: `license` at the top of this file is to name it."
        )
        + " The prompts are under the licence of the data that they were taken from"
        + (", and so are the further columns of that data in `extra`" if "extra" in columns else "")
        + ". The answers are under the terms of the models that wrote them"
        + (f" ({shown}{', …' if len(models) > SHOWN else ''})" if models else "")
        + ", some of which restrict what a model may be trained on.",
    ]


def push(folder: Path, repo: str) -> None:
    """Uploads data and card as a private dataset. Raises ClairError where the Hub does not take them."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repo, repo_type="dataset", exist_ok=True, private=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[DATA.as_posix(), CARD],
            commit_message="Preference pairs",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ClairError(
            f"{one_line(repo)}: the Hub did not take the pairs: {one_line(str(error), 300)}. They lie in "
            f"{one_line(str(folder))}; `hf upload --repo-type dataset` pushes them from there."
        ) from error


def _check_folder(folder: Path) -> None:
    """Raises UsageError where something else would be mixed with the dataset, or a card that somebody has
    written on be lost."""
    shown = one_line(str(folder))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{shown}: --to hub writes a folder, and this is a file")
    if other := next((path for path in sorted(folder.rglob("*")) if path.is_file()), None):
        raise UsageError(
            f"{shown}: holds {one_line(str(other.relative_to(folder)))}; name a new folder for the dataset"
        )


def _counted(found: Counter[str], pairs: int) -> str:
    """Names by how often they stand there, with the number where that is not for every pair."""
    shown = [
        f"`{_md(name)}`" + (f" {number:,}" if number < pairs else "")
        for name, number in found.most_common(SHOWN)
    ]
    return ", ".join(shown) + (f" and {len(found) - SHOWN:,} others" if len(found) > SHOWN else "")


def _md(text: str) -> str:
    """Text of others in one line, in which nothing is Markdown or HTML."""
    return re.sub(r"[`|<>\[\]\\*]", "'", one_line(text, 120))
