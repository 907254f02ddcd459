"""README.md of the trained folder: a model card as the Hub reads it, with the facts of the run."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clair_apo import files
from clair_apo.terminal import one_line
from clair_apo.train.outcome import CHOSEN, REJECTED, changes, formula, outcome, promise, terms, written

Record = Mapping[str, Any]

# The embedded model is this one of the Hub.
EMBEDDED = {"local:smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", {"license": "apache-2.0"})}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A folder of the Hub's cache says which repository it holds.
_CACHED = re.compile(r"(?:^|/)(models|datasets)--([\w.-]+?)--([\w.-]+?)(?=/|$)")
_LICENCE = ("license", "license_name", "license_link")

_ROWS = (
    (CHOSEN, "log-probability of chosen against the reference, nats an answer", "{:+.3f}"),
    (REJECTED, "log-probability of rejected against the reference, nats an answer", "{:+.3f}"),
    ("rewards/chosen", "reward of chosen", "{:+.4f}"),
    ("rewards/rejected", "reward of rejected", "{:+.4f}"),
    ("rewards/margins", "margin of rewards", "{:+.4f}"),
    ("rewards/accuracies", "accuracy (chosen has the greater reward)", "{:.1%}"),
    ("loss", "loss", "{:.5f}"),
)

_LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

path = {path}  # this folder, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
"""
_ASK_CHAT = """messages = [{"role": "user", "content": "What makes a good explanation?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
"""
_ASK_TEXT = """inputs = tokenizer("What makes a good explanation?", return_tensors="pt")
"""
_ANSWER = """reply = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(reply[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""

CITATION = """@article{doosterlinck2025anchored,
  title = {Anchored Preference Optimization and Contrastive Revisions:
           Addressing Underspecification in Alignment},
  author = {D'Oosterlinck, Karel and Xu, Winnie and Develder, Chris and Demeester, Thomas and
            Singh, Amanpreet and Potts, Christopher and Kiela, Douwe and Mehri, Shikib},
  journal = {Transactions of the Association for Computational Linguistics},
  volume = {13},
  pages = {442--460},
  year = {2025},
  eprint = {2408.06266},
  archivePrefix = {arXiv},
}
"""


def write_card(path: Path, metrics: Sequence[Record], facts: Record, *, chat: bool = True) -> None:
    """Writes the card of a run: `metrics` as `read_metrics` gives them, `facts` as in train.json.

    `chat`: whether the tokenizer has a chat template, for the code that loads the model.
    """
    with files.replacing(path) as temporary:
        temporary.write_text(card(metrics, facts, chat=chat), "utf-8")


def card(metrics: Sequence[Record], facts: Record, *, chat: bool = True) -> str:
    """The card as text: YAML between two lines of dashes, then Markdown."""
    front = yaml.safe_dump(front_matter(facts), sort_keys=False, width=10_000)
    return "\n".join(["---", front + "---", "", *_body(metrics, facts, chat)])


def front_matter(facts: Record) -> dict[str, Any]:
    """What the Hub sorts models by; what is not known is left out."""
    objective = str(facts["objective"])
    adapters = bool(facts["settings"].get("lora_rank"))
    found: dict[str, Any] = {}
    base = base_model(facts)
    if base is not None:
        found["base_model"] = base
        found["base_model_relation"] = "adapter" if adapters else "finetune"
    found["library_name"] = "peft" if adapters else "transformers"
    found["pipeline_tag"] = "text-generation"
    found |= licence(facts)
    if data := _cached("datasets", str(facts["pairs"])):
        found["datasets"] = [data]
    tags = ["clair-apo", one_line(objective, 40), "preference-optimization"]
    if objective.startswith("apo"):
        tags.append("apo")
    if objective != "sft":
        tags.append("dpo-like")
    found["tags"] = list(dict.fromkeys(tags))
    return found


def base_model(facts: Record) -> str | None:
    """The base model's name on the Hub; None for a folder of which that is not known."""
    name = str(facts.get("base_model") or facts["model"])
    if name in EMBEDDED:
        return EMBEDDED[name][0]
    if _HUB_NAME.fullmatch(name) and not Path(name).exists():
        return name
    return _cached("models", name)


def licence(facts: Record) -> dict[str, str]:
    """The base model's licence as its own card names it, if that lies on this machine."""
    name = str(facts["model"])
    if name in EMBEDDED:
        return dict(EMBEDDED[name][1])
    cards = [Path(name.removeprefix("local:")) / "README.md"]
    if _HUB_NAME.fullmatch(name):
        from huggingface_hub import try_to_load_from_cache

        if isinstance(cached := try_to_load_from_cache(name, "README.md"), str):
            cards.append(Path(cached))
    for one in cards:
        try:
            with one.open(encoding="utf-8", errors="replace") as file:
                text = file.read(100_000)
            front = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
        except (OSError, yaml.YAMLError, IndexError):
            continue
        if isinstance(front, dict) and isinstance(front.get("license"), str):
            return {key: one_line(front[key]) for key in _LICENCE if isinstance(front.get(key), str)}
    return {}


def _cached(kind: str, path: str) -> str | None:
    for found_kind, owner, name in _CACHED.findall(path):
        if found_kind == kind and _HUB_NAME.fullmatch(f"{owner}/{name}"):
            return f"{owner}/{name}"
    return None


# --- the text -------------------------------------------------------------------------------------


def _body(metrics: Sequence[Record], facts: Record, chat: bool) -> list[str]:
    settings = facts["settings"]
    objective = str(facts["objective"])
    name = str(settings.get("push_to_hub") or Path(str(settings["output_dir"])).resolve().name)
    base = base_model(facts)
    told = f"[{_md(base)}](https://huggingface.co/{base})" if base else _md(_short(str(facts["model"])))
    left_out = sum(facts["dropped"].values())
    rows = "rated answers" if objective in ("kto", "apo-zero-unpaired") else "preference pairs"
    adapters = ["These are adapters: `pip install peft` too.", ""] if settings.get("lora_rank") else []
    lines = [
        f"# {_md(name)}",
        "",
        f"{told}, trained with {_md(objective)} on {facts['pairs_used']:,} {rows} by clair-apo, after "
        "[Anchored Preference Optimization](https://arxiv.org/abs/2408.06266).",
        "",
        "## How to use it",
        "",
        *adapters,
        "```python",
        (_LOAD.format(path=ascii(one_line(name))) + (_ASK_CHAT if chat else _ASK_TEXT) + _ANSWER).rstrip(),
        "```",
        "",
        "## Objective",
        "",
        f"Loss of a pair: `{formula(facts)}`" + (f", where `{terms(facts)}`." if terms(facts) else "."),
        f"It promises: {promise(objective).text}.",
        "",
        "## What happened",
        "",
        *_ends(metrics, objective),
        "",
        "## Data",
        "",
        f"{facts['pairs_used']:,} of {facts['rows']:,} rows of {_md(_short(str(facts['pairs'])))}"
        + (f"; {left_out:,} were left out:" if left_out else "."),
        "",
    ]
    if left_out:
        lines += [f"- {_md(why.replace('_', ' '))}: {count:,}" for why, count in facts["dropped"].items()]
        lines.append("")
    lines += ["## Run", "", "| | |", "|---|---|"]
    run = {
        "steps": facts["steps"],
        "pairs a step": settings.get("batch_size"),
        "weights in training": facts.get("weights"),
        "hardware": _hardware(facts),
        "started": facts.get("started_at"),
        "finished": facts.get("finished_at"),
        "hash of the pairs": facts.get("pairs_hash"),
        "hash of the base model's weights": facts.get("model_hash"),
    }
    run |= facts.get("versions") or {}
    lines += _table(run)
    lines += ["", "<details><summary>All settings</summary>", "", "| | |", "|---|---|"]
    lines += _table({key: _short(value) if key in _PATHS else value for key, value in settings.items()})
    lines += ["", "</details>", "", "## Citation", "", "```bibtex", CITATION.rstrip(), "```", ""]
    return lines


_PATHS = ("model", "pairs", "eval_pairs", "output_dir", "resume")


def _short(path: Any) -> Any:
    """A path's last part: where it lies on somebody's machine is no fact of the model."""
    if isinstance(path, str) and (os.path.isabs(path) or path.startswith(("~", "..", "local:/"))):
        return _cached("models", path) or _cached("datasets", path) or Path(path).name
    return path


def _hardware(facts: Record) -> str:
    count = facts.get("processes", 1)
    return f"{count} x {facts['hardware']}" if count > 1 else str(facts["hardware"])


def _ends(metrics: Sequence[Record], objective: str) -> list[str]:
    found = outcome(metrics, objective)
    rows = changes(metrics, [name for name, *_ in _ROWS])
    forms = {name: (label, form) for name, label, form in _ROWS}
    held = any(row.held_out is not None for row in rows)
    where = "On held-out pairs" if found.held_out else "On training pairs"
    lines = [f"{where}: {_md(found.text)}. Curves: `training.html`; every step: `metrics.jsonl`."]
    if not rows:
        return lines
    last = f"mean of the last {found.last_steps:,} steps" if found.last_steps > 1 else "last step"
    heads = ["first step", last, *(["held-out pairs at the end"] if held else [])]
    lines += ["", f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for row in rows:
        label, form = forms[row.name]
        values = [row.first, row.last, *([row.held_out] if held else [])]
        cells = ["–" if value is None else written(form, value) for value in values]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _table(rows: Mapping[str, Any]) -> list[str]:
    return [
        f"| {_md(name.replace('_', ' '))} | {_md(_said(value))} |"
        for name, value in rows.items()
        if value not in (None, [], ())
    ]


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def _md(text: Any) -> str:
    """Text that Markdown shows as it is: in one line, without markup, links or HTML."""
    plain = html.escape(one_line(str(text), 500), quote=False)
    plain = re.sub(r"([\\`*_{}\[\]|~$!@])", r"\\\1", plain)
    plain = re.sub(r"^(\d*)([#+.)-])(?= |$)", r"\1\\\2", plain)
    return re.sub(r"(?i)(https?|ftp)(:)|(www)(\.)", r"\1\3\\\2\4", plain)
