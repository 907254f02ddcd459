"""The model and its tokenizer from where the user says, ready to be trained or to be the reference."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clair_apo.errors import ClairError, UsageError
from clair_apo.terminal import one_line
from clair_apo.train import attention
from clair_apo.train.kernels.attention import blocks
from clair_apo.train.packing import pack
from clair_apo.train.policy import Policy, without_dropout
from clair_apo.train.split import split_weights
from clair_apo.train.weights import known_hash

if TYPE_CHECKING:
    from clair_apo.train.kernels.layers.install import Installed
    from clair_apo.train.options import TrainOptions
    from clair_apo.train.packing import Pair


def folder_of(model: str) -> str:
    """What transformers takes for a name: a folder as it is, the embedded model's, or a name on the Hub."""
    from clair_apo.llm.local import EMBEDDED, embedded_folder

    kind, colon, name = model.partition(":")
    if kind != "local" or not colon:
        return model
    return str(embedded_folder()) if name == EMBEDDED else name


def load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder_of(model))
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(model, "tokenizer", error) from error


def load_model(model: str, dtype: torch.dtype) -> Any:
    """A model of `AutoModelForCausalLM` without dropout, in `dtype`."""
    return _load(model, dtype)[0]


def _load(model: str, dtype: torch.dtype) -> tuple[Any, bool]:
    """The model, and whether all of its weights were found."""
    import transformers

    models: Any = transformers.AutoModelForCausalLM  # not typed
    attention.register()
    try:
        loaded, report = models.from_pretrained(folder_of(model), dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreadable(model, "model", error) from error
    if getattr(loaded, "hf_quantizer", None) is not None:
        raise ClairError(f"{one_line(model)} is quantised; train the model that it was made from")
    without_dropout(loaded)
    return loaded, not report["missing_keys"] and not report["mismatched_keys"]


@dataclass
class Loaded:
    """A model as a run takes it, still on the CPU: its weights split if need be, its way of attention
    chosen, with adapters if there are to be any. `low`: the low bits that are trained with the weights, by
    name in a `Policy`; `hash`: of the weights as they were read ("" for a reference); `shares`: whether
    prefixes are shared, and `unshared` why they are not."""

    model: Any
    low: dict[str, torch.Tensor | None]
    hash: str
    parameters: int
    shares: bool
    unshared: str | None


def load_for_run(
    options: TrainOptions,
    dtype: torch.dtype,
    longest: int,
    device: torch.device,
    *,
    split: bool,
    train: bool,
) -> Loaded:
    """Reads the model of a run on `device`, to be trained or as the reference. `split`: read in float32,
    and held in bf16 with low bits."""
    began = time.time_ns()
    kind = torch.float32 if split else dtype
    model, whole = _load(options.model, kind)
    found = known_hash(model, kind, _files_of(options.model) if whole else None, began) if train else ""
    parameters = model.num_parameters()
    low = split_weights(model) if split else {}
    shares, why = sharing(model, options, longest, device)
    adapters = train and options.lora_rank is not None
    if adapters:
        model = with_adapters(model, options)
    trained = train and not adapters
    return Loaded(
        model,
        {f"causal_lm.{name}": bits for name, bits in low.items()} if trained else {},
        found,
        parameters,
        shares,
        why,
    )


def _files_of(model: str) -> Path | None:
    """The folder that a model was read from."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(folder_of(model), "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(found).parent.resolve() if found else None


def with_adapters(model: Any, options: TrainOptions) -> Any:
    """The model with LoRA adapters on every linear layer but the head, and nothing else to train."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UsageError("--lora-rank needs peft: pip install peft") from error
    rank = options.lora_rank or 0
    config = LoraConfig(
        r=rank,
        lora_alpha=options.lora_alpha or 2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(options.seed)
    return get_peft_model(model, config)


def sharing(
    model: Any, options: TrainOptions, longest: int, device: torch.device
) -> tuple[bool, str | None]:
    """Chooses how the model attends. Returns whether prefixes are shared, and why not if they cannot be."""
    if options.no_share:
        return False, None
    why = attention.shares(model.config, longest)
    if why is not None:
        return False, why
    name = options.attention
    unfit = attention.no_varlen(model.config)
    if unfit is None and options.dtype == "float32":
        unfit = "it computes in bfloat16"
    if name == "auto" and device.type == "cuda":
        name = "flex" if unfit else "varlen"
    unblocked = blocks.unfit(model.config, model.dtype)
    if name == "auto":
        name = "plain" if unblocked else "blocks"
    if device.type != "cuda" and name not in ("plain", "blocks"):
        raise UsageError(f"--attention {name} trains on CUDA only; plain does everywhere")
    if name == "blocks" and (device.type == "cuda" or unblocked):
        raise UsageError(
            f"--attention blocks is not possible here: {unblocked or 'it runs on a CPU'}; plain is"
        )
    if name == "varlen" and unfit:
        raise UsageError(f"--attention varlen is not possible here: {unfit}; flex is")
    model.set_attn_implementation(attention.NAMES[name])
    return True, None


def kernels(options: TrainOptions, device: torch.device) -> tuple[str, str | None]:
    """By what layers and head run, "fused", "lean" or "plain", and why not by what one would think.

    Raises: UsageError where --kernels asks for what cannot be.
    """
    if options.kernels in ("lean", "plain"):
        return options.kernels, None
    if options.kernels == "auto" and device.type != "cuda":
        return "lean", None
    why = _no_kernels(device)
    if why is not None and options.kernels == "fused":
        raise UsageError(f"--kernels fused is not possible here: {why}; lean and plain are")
    return ("fused", None) if why is None else ("lean", why)


def _no_kernels(device: torch.device) -> str | None:
    from clair_apo.train.kernels import available

    if not available(device):
        if device.type == "cuda":
            return "Triton is not installed (pip install triton)"
        return (
            "kernels run on CUDA, and on a CPU in Triton's interpreter only, for tests (TRITON_INTERPRET=1)"
        )
    from clair_apo.train.kernels.layers.norm import rms_norm

    try:
        rms_norm(torch.ones(1, 8, device=device), torch.ones(8, device=device), 1e-6)
    except Exception as error:  # whatever the compiler, its own C compiler or the driver has to say
        return f"Triton does not work ({one_line(str(error) or type(error).__name__, 200)})"
    return None


def check_model(policy: Policy, pair: Pair, tolerance: float, installed: Installed | None = None) -> None:
    """Compares a pair's log-probabilities, shared and by our head and kernels, with those of two passes of
    the model as it is.

    Raises: ClairError where they differ by more than `tolerance`, in nats a token.
    """
    device = policy.model.device
    batch = pack([pair], share=policy.share).to(device)
    used = policy.config._attn_implementation
    with torch.no_grad():
        _, *ours = policy(batch, lambda chosen, rejected, _: chosen)
        policy.model.set_attn_implementation("eager")
        with (
            installed.aside() if installed else contextlib.nullcontext(),
            torch.autocast(device.type, policy.autocast, enabled=policy.autocast is not None),
        ):
            theirs = policy.plain_logps([pair])
    policy.model.set_attn_implementation(used)
    tokens = max(1, len(pair.chosen) + len(pair.rejected))
    worst = max(float((a - b.to(device)).abs()) for a, b in zip(ours, theirs, strict=True)) / tokens
    if not worst <= tolerance:
        raise ClairError(
            f"the log-probabilities of {type(policy.model).__name__} differ by {worst:.2g} nats a "
            "token from "
            "those of its own logits: its attention or head does something that is not known here. "
            "--no-share may train it; please report this model."
        )


def _unreadable(model: str, what: str, error: Exception) -> ClairError:
    said = one_line(str(error), 300)
    hint = "" if Path(folder_of(model)).exists() else " (no such folder, and not found on the Hub)"
    return ClairError(f"{one_line(model)}: the {what} could not be loaded{hint}: {said}")
