"""The settings of a training run: one field, one flag, one key of a YAML file.

Names are TRL's where the meaning is the same. Importing this is cheap, for `clair-apo --help`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clair_apo.errors import UsageError
from clair_apo.flags import Waiving, above_zero, named, not_negative, not_negative_float, positive

OBJECTIVES = ("apo-zero", "apo-down", "dpo", "kto-pair", "kto", "apo-zero-unpaired", "sft", "auto")
SCHEDULES = ("linear", "cosine", "constant")
TRACKERS = ("tensorboard", "wandb", "trackio")

NOT_RECORDED = ("json", "quiet", "plan", "plan_memory")

# A number of MiB in place of GiB is above this.
MOST_GIB = 10_000

# AdamW on bare bf16 weights moves nearly none of them below this rate: a step is less than half the
# distance to the next bf16 number (docs/training.md, "How weights are held").
LOWEST_BF16_RATE = 1e-5


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The flags of `clair-apo train` under their own names; see its help for what each means."""

    model: str
    pairs: str
    output_dir: str
    objective: str = "apo-zero"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    length_normalised: bool = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: str = "cached"
    max_length: int = 2048
    max_prompt_length: int | None = None
    plain_text: bool = False
    batch_size: int = 64
    num_train_epochs: int = 1
    max_steps: int | None = None
    seed: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 2e-7
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.0
    max_grad_norm: float = 1.0
    lora_rank: int | None = None
    lora_alpha: int | None = None
    dtype: str = "auto"
    moments: str = "8bit"
    allow_bf16_updates: bool = False
    tokens_per_microbatch: int | None = None
    activation_budget: int | None = None
    attention: str = "auto"
    kernels: str = "auto"
    no_share: bool = False
    sharding: str = "auto"
    eval_pairs: str | None = None
    eval_steps: int | None = None
    logging_steps: int = 1
    save_steps: int | None = None
    save_total_limit: int = 2
    resume: str | None = None
    report_to: tuple[str, ...] = ()
    push_to_hub: str | None = None
    plan: int | None = None
    plan_memory: float | None = None
    json: bool = False
    quiet: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> TrainOptions:
        """The options that a parsed command line holds. Raises UsageError for what cannot go together."""
        names = {item.name for item in fields(cls)}
        options = cls(**{name: value for name, value in vars(args).items() if name in names})
        options.check()
        return options

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other, those of the objective among them."""
        from clair_apo.train.objectives import ObjectiveOptions

        if self.objective != "auto":
            ObjectiveOptions.of(self)
        folders = self.plan is None and self.directory.exists() and Path(self.model).exists()
        if folders and self.directory.samefile(self.model):
            raise UsageError(
                "--output-dir is the folder of --model: the trained model would be written over the one it "
                "comes from, which is its reference and what --resume starts with; take another folder"
            )
        if self.max_prompt_length is not None and self.max_prompt_length >= self.max_length:
            raise UsageError("--max-prompt-length leaves no room for an answer within --max-length")
        if self.lora_alpha is not None and self.lora_rank is None:
            raise UsageError("--lora-alpha needs --lora-rank")
        if self.no_share and self.attention != "auto":
            raise UsageError("--attention chooses how prefixes are shared; it does nothing with --no-share")
        if self.eval_steps is not None and self.eval_pairs is None:
            raise UsageError("--eval-steps needs --eval-pairs")
        if self.allow_bf16_updates and (self.dtype != "bfloat16" or self.lora_rank is not None):
            raise UsageError(
                "--allow-bf16-updates drops the low bits that --dtype bfloat16 keeps of trained weights; "
                "it needs --dtype bfloat16, and no --lora-rank, whose adapters are float32"
            )

    def as_dict(self) -> dict[str, Any]:
        """What train.json records: everything but how it was shown and planned."""
        return {name: value for name, value in asdict(self).items() if name not in NOT_RECORDED}

    def in_bfloat16(self, *, cuda: bool) -> bool:
        """Whether the weights that run are bf16, on CUDA or not."""
        return self.dtype == "bfloat16" or (cuda and self.dtype == "auto")

    @property
    def directory(self) -> Path:
        return Path(self.output_dir)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `train` to `parser`."""
    parser.epilog = (
        "example:\n  clair-apo train --model local:smollm2 --pairs pairs.parquet --output-dir trained\n\n"
        "On several GPUs: accelerate launch -m clair_apo.train with the same flags."
    )
    _what(parser.add_argument_group("what is trained, and on what"))
    _objective(parser.add_argument_group("the objective"))
    _steps(parser.add_argument_group("steps"))
    _held(parser.add_argument_group("what is trained of the model, and how it is held"))
    _written(parser.add_argument_group("what is written"))
    _planned(parser.add_argument_group("memory"))


def _what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        required=True,
        type=named,
        metavar="PATH",
        help="a folder, a name on the Hub, or local:smollm2",
    )
    group.add_argument(
        "--pairs",
        required=True,
        metavar="FILE",
        help="preference pairs, .parquet, .jsonl (.gz, .zst), .csv, a folder or a quoted glob; for kto "
        "and apo-zero-unpaired also rows of prompt, completion, label",
    )
    group.add_argument(
        "--output-dir",
        required=True,
        metavar="DIR",
        help="the trained model, its metrics and checkpoints",
    )
    group.add_argument("--eval-pairs", metavar="FILE", help="held-out pairs")
    group.add_argument(
        "--max-length",
        type=positive,
        default=2048,
        metavar="N",
        help="tokens of prompt and longer answer; pairs beyond are left out and listed (%(default)s)",
    )
    group.add_argument(
        "--max-prompt-length", type=positive, metavar="N", help="tokens of a prompt, likewise"
    )
    group.add_argument(
        "--plain-text",
        action="store_true",
        help="for a model without a chat template: prompt and answer as they are, and its end of text",
    )


def _objective(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="apo-zero",
        help="auto: what `clair-apo advise` says of these pairs and this model (%(default)s)",
    )
    group.add_argument(
        "--beta",
        type=above_zero,
        default=0.1,
        metavar="B",
        help="scale of the log-ratios (%(default)s)",
    )
    group.add_argument(
        "--sft-weight",
        type=not_negative_float,
        default=0.0,
        metavar="W",
        help="adds W times the SFT loss of the chosen answers",
    )
    group.add_argument(
        "--label-smoothing",
        type=_below_half,
        default=0.0,
        metavar="E",
        help="dpo: share of labels taken to be wrong",
    )
    group.add_argument(
        "--length-normalised", action="store_true", help="log-ratios a token in place of an answer"
    )
    for name in ("--desirable-weight", "--undesirable-weight"):
        group.add_argument(
            name, type=above_zero, default=1.0, metavar="W", help="kto and apo-zero-unpaired"
        )
    group.add_argument(
        "--reference",
        choices=("cached", "live"),
        default="cached",
        help="log-probabilities of the untrained model, computed once and kept, or a second model in "
        "memory (%(default)s)",
    )


def _steps(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch-size",
        type=positive,
        default=64,
        metavar="N",
        help="pairs in one optimiser step, over all processes (%(default)s)",
    )
    group.add_argument("--num-train-epochs", type=positive, default=1, metavar="N", help="(%(default)s)")
    group.add_argument("--max-steps", type=positive, metavar="N", help="stop after so many steps")
    group.add_argument(
        "--seed", type=not_negative, default=0, metavar="S", help="order of the pairs (%(default)s)"
    )
    group.add_argument("--optimizer", choices=("adamw", "rmsprop"), default="adamw", help="(%(default)s)")
    group.add_argument(
        "--learning-rate",
        type=above_zero,
        default=2e-7,
        metavar="R",
        help="the highest (%(default)s)",
    )
    group.add_argument(
        "--weight-decay", type=not_negative_float, default=0.0, metavar="W", help="(%(default)s)"
    )
    group.add_argument("--adam-beta1", type=_below_one, default=0.9, metavar="B", help="(%(default)s)")
    group.add_argument(
        "--adam-beta2",
        type=_below_one,
        default=0.999,
        metavar="B",
        help="also the smoothing of rmsprop (%(default)s)",
    )
    group.add_argument("--adam-epsilon", type=above_zero, default=1e-8, metavar="E", help="(%(default)s)")
    group.add_argument(
        "--lr-scheduler-type", choices=SCHEDULES, default="linear", help="down to 0 (%(default)s)"
    )
    group.add_argument(
        "--warmup-ratio",
        type=_below_one,
        default=0.0,
        metavar="W",
        help="share of the steps (%(default)s)",
    )
    group.add_argument(
        "--max-grad-norm",
        type=above_zero,
        default=1.0,
        metavar="N",
        help="gradients are clipped to this (%(default)s)",
    )


def _held(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lora-rank",
        type=positive,
        metavar="R",
        help="train adapters of this rank (needs peft)",
    )
    group.add_argument(
        "--lora-alpha",
        type=positive,
        metavar="A",
        help="their scale (default: twice the rank)",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of weights and products; bfloat16 keeps the 16 bits that weights lack of float32 beside "
        "them, so updates are those of float32; auto: float32 on a CPU, bfloat16 on CUDA",
    )
    group.add_argument(
        "--moments",
        choices=("8bit", "float32"),
        default="8bit",
        help="how the optimiser of bfloat16 weights keeps its moments (%(default)s)",
    )
    group.add_argument(
        "--allow-bf16-updates",
        action="store_true",
        help="bfloat16 weights without their 16 low bits, which hardly move at small rates",
    )
    group.add_argument(
        "--tokens-per-microbatch",
        type=positive,
        metavar="N",
        help="run over at a time in each process (default: what fits, up to 4096, on CUDA; 1024 on a CPU)",
    )
    group.add_argument(
        "--activation-budget",
        type=positive,
        metavar="N",
        help="tokens whose activations are kept; beyond it layers are run twice (default: what fits on "
        "CUDA, as many as a microbatch may have on a CPU)",
    )
    group.add_argument(
        "--attention",
        choices=("auto", "plain", "blocks", "flex", "varlen"),
        default="auto",
        help="how shared prefixes are attended to; auto: varlen on CUDA in bfloat16 or else flex; on a CPU "
        "blocks in float32 where it has AVX-512 or AVX2, or else plain",
    )
    group.add_argument(
        "--kernels",
        choices=("auto", "fused", "lean", "plain"),
        default="auto",
        help="norms, rotary positions, gates and the head by fused kernels; lean: in PyTorch, keeping less "
        "for the way back; plain: as the model has them; auto: fused on CUDA where Triton works, or else "
        "lean",
    )
    group.add_argument("--no-share", action="store_true", help="a pass of its own for each answer")
    group.add_argument(
        "--sharding",
        choices=("auto", "ddp", "fsdp"),
        default="auto",
        help="with several processes: weights in each (ddp), or spread over them (fsdp); auto: as "
        "accelerate is configured",
    )


def _written(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--eval-steps",
        type=positive,
        metavar="N",
        help="held-out pairs every N steps (default: ten times a run)",
    )
    group.add_argument("--logging-steps", type=positive, default=1, metavar="N", help="(%(default)s)")
    group.add_argument(
        "--save-steps",
        type=positive,
        metavar="N",
        help="a checkpoint every N steps (default: at the end and when interrupted)",
    )
    group.add_argument(
        "--save-total-limit",
        type=positive,
        default=2,
        metavar="N",
        help="checkpoints that are kept (%(default)s)",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        metavar="CHECKPOINT",
        help="go on from the newest whole checkpoint in DIR, or from this one",
    )
    group.add_argument(
        "--report-to", type=_trackers, default=(), metavar="NAME[,NAME]", help=", ".join(TRACKERS)
    )
    group.add_argument("--push-to-hub", metavar="REPO", help="push the trained model there at the end")


def _planned(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--plan",
        action=_Plan,
        nargs="?",
        const=0,
        type=positive,
        metavar="PROCESSES",
        help="print what memory this run takes, and what it would pick, and end; only --model is needed. "
        "PROCESSES: as if launched in so many",
    )
    group.add_argument(
        "--plan-memory",
        type=_gib,
        metavar="GIB",
        help="what the run may take of a GPU (default: what is free; without a GPU 74, that of the 80 GB "
        "class)",
    )


class _Plan(Waiving):
    """A plan needs neither pairs nor a folder."""

    needless = ("pairs", "output_dir")


def _gib(text: object) -> float:
    number = above_zero(text)
    if number >= MOST_GIB:
        raise argparse.ArgumentTypeError(f"{text} GiB is more than any GPU has; 74 is one of 80 GB")
    return number


def _below_one(text: object) -> float:
    number = not_negative_float(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return number


def _below_half(text: object) -> float:
    number = not_negative_float(text)
    if number >= 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 0.5")
    return number


def _trackers(text: object) -> tuple[str, ...]:
    names = text if isinstance(text, list | tuple) else str(text).split(",")
    found = tuple(str(name).strip() for name in names)
    if other := [name for name in found if name not in TRACKERS]:
        raise argparse.ArgumentTypeError(f"{other[0]!r} is not one of {', '.join(TRACKERS)}")
    return found
