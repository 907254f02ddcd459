"""What a run leaves in its folder besides checkpoints: the model, train.json, the card, the page."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clair_apo import files
from clair_apo.errors import ClairError
from clair_apo.terminal import one_line
from clair_apo.train.card import write_card
from clair_apo.train.checkpoint import save_model
from clair_apo.train.metrics import read_metrics
from clair_apo.train.page import write_page
from clair_apo.train.view import without_bars

if TYPE_CHECKING:
    from clair_apo.train.launch import Processes
    from clair_apo.train.options import TrainOptions
    from clair_apo.train.tokens import Dropped
    from clair_apo.train.view import View

PACKAGES = ("clair-apo", "torch", "transformers", "accelerate", "peft")


@dataclass
class Facts:
    """What train.json holds; see SURFACE of the documentation."""

    model: str
    model_hash: str
    pairs: str
    pairs_hash: str
    rows: int
    pairs_used: int
    dropped: dict[str, int]
    end_of_turn: str
    pinned_date: str | None
    objective: str
    initial_loss: float | None
    steps: int
    settings: dict[str, Any]
    weights: str
    processes: int
    hardware: str
    versions: dict[str, str] = field(default_factory=dict)
    started_at: str = ""
    finished_at: str | None = None
    final: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        with files.replacing(folder / "train.json") as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")


def write_dropped(folder: Path, dropped: Sequence[Dropped]) -> None:
    """`dropped.jsonl`: the rows of the pairs that are left out, with the reason of each."""
    path = folder / "dropped.jsonl"
    if not dropped:
        path.unlink(missing_ok=True)
        return
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row._asdict()) + "\n" for row in dropped)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def finish(
    policy: Any,
    tokenizer: Any,
    facts: Facts,
    options: TrainOptions,
    processes: Processes,
    view: View,
) -> dict[str, Any]:
    """Writes the trained model and what is to be known of it. Returns what train.json holds."""
    folder = options.directory
    with without_bars():
        save_model(policy, tokenizer, folder)
    if processes.first:
        metrics = read_metrics(folder / "metrics.jsonl")
        facts.finished_at = now()
        facts.final = {}
        for record in metrics:
            facts.final |= record
        facts.write(folder)
        write_page(folder / "training.html", metrics, asdict(facts))
        write_card(folder / "README.md", metrics, asdict(facts), chat=bool(tokenizer.chat_template))
        view.closing(asdict(facts), metrics)
        if options.push_to_hub:
            push(folder, options.push_to_hub)
    processes.wait()
    return asdict(facts)


def push(folder: Path, repo: str) -> None:
    """Uploads the folder without checkpoints. Raises ClairError where the Hub does not take it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True, private=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=["checkpoints/*", ".*"], commit_message="APO"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ClairError(
            f"{one_line(repo)}: the Hub did not take the model: {one_line(str(error), 300)}. It lies in "
            f"{one_line(str(folder))}; `hf upload` pushes it from there."
        ) from error
