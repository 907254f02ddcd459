"""Small tokenizers with chat templates of the kinds that models have."""

from __future__ import annotations

import string
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CLOCK = "{{ 'It is ' + strftime_now('%Y-%m-%d') + ', ' + strftime_now(\"%A\") + '.' }}" + CHATML
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + m['role'].replace('assistant', 'model') + '\n' + m['content'] | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% set content = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in m['content'] else '' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENS_THINKING = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
WITHOUT_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "chatml with a system prompt": CHATML_WITH_SYSTEM,
    "llama3": LLAMA3,
    "clock": CLOCK,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "phi3": PHI3,
    "qwen3": QWEN3,
}

SPECIAL = [
    *("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>"),
]
CORPUS = [
    "The answer is a question of the question, and the answer stands here.\n\nIt is so.\n\n\n",
    "assistant\nThe assistant: answers the user.\n\nuser\nThe user asks.\n assistant\nassistant\n\n",
    "<think>\n\n</think>\n\nNo thought. assistant: It is. assistant: Yes. [INST] It is? [/INST] It is.",
] * 4


def tiny_tokenizer(template: str | None, *, cuts: bool = True, words: bool = False) -> Any:
    """A tokenizer of a few hundred pieces. `cuts`: text is cut into words before BPE, as GPT-2 does;
    without it any two characters can be joined. `words`: a mark stands for a space, as SentencePiece has
    it, and text without one in front gets one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>" if words else None, fuse_unk=True))
    if words:
        alphabet = list(string.printable)
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        raw.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    else:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cuts)
        raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=alphabet,
        special_tokens=[*SPECIAL, "<unk>"],
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>" if words else None,
    )
    # As Qwen has it: a token of its own that steers nothing by itself.
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    tokenizer.chat_template = template
    return tokenizer
