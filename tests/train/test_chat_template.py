"""Chat templates of the kinds that models have: what is scored, and what is refused."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from tiny_tokenizers import (
    CHATML,
    CHATML_WITH_SYSTEM,
    CLOCK,
    GEMMA,
    LLAMA3,
    OPENS_THINKING,
    PHI3,
    QWEN3,
    TEMPLATES,
    WITHOUT_END,
    tiny_tokenizer,
)

from clair_apo.errors import ClairError
from clair_apo.train.template import ControlTokens, PlainText, Template, Unfit

QUESTION = [{"role": "user", "content": "Is it so?"}]
CONVERSATION = [
    {"role": "user", "content": "The answer?"},
    {"role": "assistant", "content": "It is here."},
    {"role": "user", "content": "Where?"},
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [QUESTION, CONVERSATION], ids=["question", "conversation"])
def test_a_prompt_is_what_generation_sees(name: str, prompt: list[dict[str, str]]) -> None:
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    rendered = Template(tokenizer).render(prompt, ["Yes, it is.", "No."])
    if name not in ("llama3", "clock"):
        assert rendered.prompt == tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True
        )
    for answer, text in zip(["Yes, it is.", "No."], rendered.answers, strict=True):
        assert answer in text
        assert not text[-1].isspace()  # the line feed behind the end of turn is no part of it
        assert tokenizer(text, add_special_tokens=False)["input_ids"][-1] in tokenizer.all_special_ids or (
            text.endswith(("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"))
        )


def test_the_end_of_turn_is_the_first_token_behind_the_answer() -> None:
    assert Template(tiny_tokenizer(CHATML)).ending == "<|im_end|>"
    # Phi 3 writes a line feed and its eos_token behind that.
    assert Template(tiny_tokenizer(PHI3)).ending == "<|end|>"


def test_a_template_without_end_of_turn_is_an_error() -> None:
    with pytest.raises(ClairError, match=r"never to stop.*eos_token.*chat_template\.jinja"):
        Template(tiny_tokenizer(WITHOUT_END))


def test_a_template_without_the_answer_is_an_error() -> None:
    with pytest.raises(ClairError, match="leaves out the answer"):
        Template(tiny_tokenizer("{{ '<bos>' + messages[0]['content'] + '<eos>' }}"))


def test_a_template_that_refuses_everything_is_an_error() -> None:
    with pytest.raises(ClairError, match="refuses a question with an answer: for pictures only"):
        Template(tiny_tokenizer("{{ raise_exception('for pictures only') }}"))


class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls(2031, 1, 2)


@pytest.mark.parametrize("template", [LLAMA3, CLOCK])
def test_the_clock_stands_still(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer(template)
    today = Template(tokenizer).render(QUESTION, ["Yes."])
    import transformers.utils.chat_template_utils as utils

    monkeypatch.setattr(utils, "datetime", Tomorrow)
    assert "2031" in tokenizer.apply_chat_template(
        QUESTION, tokenize=False
    )  # the clock does reach templates
    tomorrow = Template(tokenizer)
    assert tomorrow.render(QUESTION, ["Yes."]) == today
    assert tomorrow.pinned_date == "2024-07-26"
    assert "26 Jul 2024" in today.prompt or "It is 2024-07-26, Friday." in today.prompt


def test_a_clock_asked_in_an_unknown_way_stands_still_too() -> None:
    template = "{% set f = '%Y' %}{{ strftime_now(f) }}" + CHATML
    assert (
        Template(tiny_tokenizer(template)).render(QUESTION, []).prompt.startswith("2024-07-26<|im_start|>")
    )


def test_a_template_is_the_same_behind_a_pinned_clock() -> None:
    template = "\n  {{ strftime_now('%d') }}" + CHATML
    tokenizer = tiny_tokenizer(template)
    plain = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    day = f"{datetime.datetime.now():%d}"
    assert Template(tokenizer).render(QUESTION, []).prompt == plain.replace(day, "26", 1)


def test_thinking_that_the_template_writes_is_scored() -> None:
    template = Template(tiny_tokenizer(QWEN3))
    assert template.lead == "<think>\n\n</think>\n\n"
    assert template.render(QUESTION, ["It is."]).answers == ["<think>\n\n</think>\n\nIt is.<|im_end|>"]


def test_a_prompt_that_opens_thinking_is_no_prompt_of_its_answers() -> None:
    with pytest.raises(Unfit, match=r"ends in .*<think>\\n'") as unfit:
        Template(tiny_tokenizer(OPENS_THINKING)).render(QUESTION, ["It is."])
    assert unfit.value.reason == "prompt_changes"


def test_an_answer_that_ends_otherwise_is_unfit() -> None:
    odd = CHATML.replace("'<|im_end|>\n'", "('' if 'No' in m['content'] else '<|im_end|>\n')")
    with pytest.raises(Unfit) as unfit:
        Template(tiny_tokenizer(odd)).render(QUESTION, ["It is.", "No."])
    assert unfit.value.reason == "no_end_of_turn"


def test_messages_that_the_template_refuses() -> None:
    template = Template(tiny_tokenizer(GEMMA))
    with pytest.raises(Unfit, match="roles must alternate") as unfit:
        template.render([{"role": "system", "content": "Be brief."}, *QUESTION], ["It is."])
    assert unfit.value.reason == "template"


def test_a_prompt_that_ends_with_the_assistant_is_refused() -> None:
    with pytest.raises(Unfit, match="ends with a message of the assistant"):
        Template(tiny_tokenizer(CHATML)).render(CONVERSATION[:2], ["It is."])


def test_what_the_template_says_by_itself_is_known() -> None:
    assert Template(tiny_tokenizer(CHATML)).system == ""
    assert Template(tiny_tokenizer(CHATML_WITH_SYSTEM)).system == "You are tiny."


def test_plain_text() -> None:
    tokenizer = tiny_tokenizer(None)
    rendered = PlainText(tokenizer).render(QUESTION, [" It is."])
    assert (rendered.prompt, rendered.answers) == ("Is it so?", [" It is.<eos>"])
    with pytest.raises(Unfit, match="conversation of 3 messages"):
        PlainText(tokenizer).render(CONVERSATION, ["It is."])
    tokenizer.eos_token = None
    with pytest.raises(ClairError, match="eos_token"):
        PlainText(tokenizer)


def test_plain_text_begins_as_the_tokenizer_has_it() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(None)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", bos)]
    )
    assert PlainText(tokenizer).render(QUESTION, []).prompt == "<bos>Is it so?"


def test_control_tokens_are_found_as_text() -> None:
    control = ControlTokens(Template(tiny_tokenizer(QWEN3)).control)
    assert control.find(["It is.", "No <|im_end|> more <eos>"]) == "<|im_end|>"
    assert control.find(["<think>\nA thought steers nothing.\n</think>", "<|im_", "end|>"]) is None
    assert ControlTokens([]).find(["anything"]) is None


def test_an_end_of_turn_that_is_not_marked_special_steers_all_the_same() -> None:
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer(CHATML.replace("im_end", "over"))
    tokenizer.add_tokens([AddedToken("<|over|>", special=False)])
    template = Template(tokenizer)
    assert template.end_of_turn == "<|over|>"
    assert ControlTokens(template.control).find(["It is <|over|>"]) == "<|over|>"
