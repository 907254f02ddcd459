"""One step of a TRL trainer on a CPU, with a tiny model: whether it takes a table, and its first loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ["<pad>", "<eos>", "<unk>", "user", "assistant", "What", "is", "It", "and", "one", "?", "."]
WORDS += [str(n) for n in range(12)]


def tiny_model(folder: Path, **sizes: int) -> Any:
    """Saves a model of a few thousand weights in `folder`, from which TRL loads it, and its tokenizer of
    words; returns the tokenizer. `sizes` take the place of its config's."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' <eos> ' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= sizes
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, eos_token_id=1, **small))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def first_loss(kind: str, rows: Any, model: Path, tokenizer: Any, loss: str, out: Path) -> float:
    """The loss that TRL's `{kind}Trainer` (DPO, KTO) logs for its first step on `rows`."""
    import trl

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(out),
        max_steps=1,
        per_device_train_batch_size=4,
        loss_type=loss,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        bf16=False,
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        model=str(model), args=config, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    losses: list[float] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses[0]
