"""The strict parser: every marker shape seen in the wild, and nothing but the answer comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clair_apo.build import templates
from clair_apo.build.parser import Parsed, Refused, Unparsable, parse
from clair_apo.build.thinking import strip_thinking

PAPER = templates.load("paper")
PLAIN = templates.load("answer-only")
ANSWER = "Paris is the capital.\n\nIt lies on the Seine."
ORIGINAL = "Paris is capital"


def marked(reply: str, original: str = ORIGINAL) -> Parsed:
    return parse(reply, PAPER, original)


@pytest.mark.parametrize(
    "reply",
    [
        f"{{teacher_reasoning}}: why\n\n{{corrected_student_solution}}:\n{ANSWER}",
        f"{{teacher_reasoning}}\n\nwhy\n\n{{corrected_student_solution}}\n\n{ANSWER}\n",
        f"{{corrected_student_solution}}: {ANSWER}",
        # bold, with the colon inside or outside
        f"{{teacher_reasoning}}: why\n\n**Corrected Student Solution:**\n{ANSWER}",
        f"**{{corrected_student_solution}}**:\n{ANSWER}",
        f"**{{teacher_reasoning}}:** why\n**{{corrected_student_solution}}:** {ANSWER}",
        # the reasoning names the marker, the real one has no colon
        f"{{teacher_reasoning}}: The {{corrected_student_solution}}: must keep the start.\n\n"
        f"{{corrected_student_solution}}\n{ANSWER}",
        f"{{teacher_reasoning}}: why\n1. {{corrected_student_solution}} needs a river.\n"
        f"{{corrected_student_solution}} should say so.\n\n{{corrected_student_solution}}\n{ANSWER}",
        # the marker twice
        f"{{corrected_student_solution}}:\nA draft.\n\n{{teacher_reasoning}}: no\n"
        f"{{corrected_student_solution}}:\n{ANSWER}",
        f"{{corrected_student_solution}}:\nA draft.\n{{corrected_student_solution}}:\n{ANSWER}",
        # headings, lists, brackets, tags, code
        f"## Teacher Reasoning\nwhy\n## Corrected Student Solution\n{ANSWER}",
        f"### {{corrected_student_solution}}:\n{ANSWER}\n\n### {{teacher_reasoning}}\nIt was unclear.",
        f"1. Teacher Reasoning:\nwhy\n2. Corrected Student Solution:\n{ANSWER}",
        f"[Corrected Student Solution]:\n{ANSWER}",
        f"`{{corrected_student_solution}}`\n{ANSWER}",
        f"{{{{corrected_student_solution}}}}\n{ANSWER}",
        f"{{corrected_student_solution:}}\n{ANSWER}",
        f"corrected_student_solution:\n{ANSWER}",
        f"CORRECTED STUDENT SOLUTION:\n{ANSWER}",
        f"<teacher_reasoning>why</teacher_reasoning>\n<corrected_student_solution>\n{ANSWER}\n"
        "</corrected_student_solution>",
        f"<corrected_student_solution>{ANSWER}</corrected_student_solution>\nThat is all.",
        f"{{corrected_student_solution}}\n{ANSWER}\n{{/corrected_student_solution}}",
        f"```\n{{teacher_reasoning}}\nwhy\n{{corrected_student_solution}}\n{ANSWER}\n```",
        f"{{corrected_student_solution}}\n{ANSWER}\n\n{{corrected_student_solution}}\n",
        # thinking aloud
        "<think>\n{corrected_student_solution}:\na draft\n</think>\n{teacher_reasoning}: why\n"
        f"{{corrected_student_solution}}: {ANSWER}",
        "a draft\n{corrected_student_solution}:\nbad\n</think>\n"
        f"{{corrected_student_solution}}:\n{ANSWER}",
        f"<thinking>hm</thinking>\n\n{{corrected_student_solution}}:\r\n{ANSWER}",
    ],
)
def test_shapes_of_the_marker(reply: str) -> None:
    assert marked(reply).revision == ANSWER


@pytest.mark.parametrize(
    "reply",
    [
        "I would make it clearer.",
        "The corrected student solution: is nice, I think.",
        "{corrected_student_solution} should be clearer, and mention the river.",
        "{teacher_reasoning}: why",
        "{teacher_reasoning}: why\n\n{corrected_student_solution}:\n\n",
        "<think>\n{corrected_student_solution}:\nNever closed",
        "",
    ],
)
def test_what_is_no_answer_is_never_taken_for_one(reply: str) -> None:
    with pytest.raises(Unparsable):
        marked(reply)


@pytest.mark.parametrize(
    "closing",
    [
        "---\n\nThis revision corrects the student's mistake about the river.",
        "I corrected the student's answer by naming the river.",
        "**Changes made:**\n\n- named the river\n- named the capital",
        "---\n**Note:** The revised answer keeps the first sentence.",
        "***\n\nI fixed two mistakes in the explanation.",
        "I have kept the structure of the original answer.",
        "Summary of changes: the river is named.",
        "In this revision, the river is named.",
    ],
)
def test_a_closing_remark_is_no_part_of_the_answer(closing: str) -> None:
    parsed = marked(f"{{corrected_student_solution}}\n{ANSWER}\n\n{closing}")
    assert parsed.revision == ANSWER
    assert parsed.comment_cut


@pytest.mark.parametrize(
    "ending",
    [
        "---\n\nAsk me if you want to know more about Paris.",
        "I have changed trains there twice.",
        "Students love the city.",
        "Note: the river is long.",
        "Let the students answer in pairs.",
        "I have corrected the text as you asked.",
        "---\n\nThe next text: London.",
        "This enhanced map now includes the river.",
    ],
)
def test_an_ending_that_belongs_to_the_answer_stays(ending: str) -> None:
    parsed = marked(f"{{corrected_student_solution}}\n{ANSWER}\n\n{ending}")
    assert parsed.revision == f"{ANSWER}\n\n{ending}"
    assert not parsed.comment_cut


@pytest.mark.parametrize(
    "closing",
    [
        "Note: I changed the city and kept the river.",
        "**Changes:**\n- the river",
        "I named the river and kept everything else.".replace("named", "corrected"),
        "Overall, this revised answer is clearer.",
        "These changes make it clearer.",
        "---\n*Changes: the river*",
        "{teacher_reasoning} I named the river.",
        "[End of corrected solution]",
        "{end_of_corrected_student_solution}",
        "-----------------",
        "```",
    ],
)
def test_more_that_is_no_part_of_the_answer(closing: str) -> None:
    assert marked(f"{{corrected_student_solution}}\n{ANSWER}\n\n{closing}").revision == ANSWER


@pytest.mark.parametrize(
    "reply",
    [
        f"{{corrected_student_solution}}:\n{ANSWER}\n\n**Corrected student solution:** Fixed the capital.",
        "{teacher_reasoning}: The\n{corrected_student_solution}: should say so.\nI will do that now.",
        "1. {teacher_reasoning}: be clear\n2. {corrected_student_solution}: will be precise",
        "The form is\n```\n{corrected_student_solution}:\nfoo\n```\nI will now give it.",
        "{teacher_reasoning}: x\n<think>\n{corrected_student_solution}:\nNever closed",
    ],
)
def test_in_doubt_there_is_no_revision(reply: str) -> None:
    with pytest.raises(Unparsable):
        marked(reply)


@pytest.mark.parametrize(
    "reply",
    [
        f"<corrected_student_solution>draft</corrected_student_solution>\n{{corrected_student_solution}}:\n{ANSWER}",
        f"{{corrected_student_solution}}:\n{ANSWER}\n\n{{corrected_student_solution}}: see above.",
        f"[THINK]{{corrected_student_solution}}: a draft[/THINK]{{corrected_student_solution}}:\n{ANSWER}",
        f"<thoughts>x</thoughts>\n{{corrected_student_solution}}:\n{ANSWER}",
        f"a draft, so</think>{{corrected_student_solution}}:\n{ANSWER}",
    ],
)
def test_the_last_section_that_is_one(reply: str) -> None:
    assert marked(reply).revision == ANSWER


@pytest.mark.parametrize(
    "answer",
    [
        "```xml\n<thinking>\nsteps\n</thinking>\n<answer>x</answer>\n```",
        "So:\n\n<reasoning>It is so.</reasoning>\n\nThat is why.",
        "It starts with\n<think> and then reasons.",
        "Close it with `</think>`, always.",
        "    indented = code\n    more = 1",
        "{task}: do the dishes\nThen go.",
    ],
)
def test_answers_about_tags_and_forms_stay_whole(answer: str) -> None:
    assert strip_thinking(answer) == answer
    prompt = "Write the line\n{task}: do the dishes\nand more."
    assert parse(f"{{corrected_student_solution}}:\n{answer}", PAPER, ORIGINAL, prompt).revision == answer


def test_a_remark_that_the_original_has_too_stays() -> None:
    remark = "Changes made: none."
    parsed = marked(f"{{corrected_student_solution}}\n{ANSWER}\n\n{remark}", f"A log.\n\n{remark}")
    assert parsed.revision.endswith(remark)


def test_changes_that_the_user_asked_for_stay() -> None:
    reply = f"{{corrected_student_solution}}\n{ANSWER}\n\nChanges made:\n\n- a comma"
    assert parse(reply, PAPER, ORIGINAL, "Proofread this: Paris is capital").revision.endswith("a comma")
    assert parse(reply, PAPER, ORIGINAL, "What is the capital?").revision == ANSWER


def test_a_marker_inside_code_is_code() -> None:
    code = "```python\nprint('''\n{corrected_student_solution}:\nx''')\n```"
    assert marked(f"{{corrected_student_solution}}:\n{code}").revision == code


def test_refusals_have_a_type_of_their_own() -> None:
    for words in (
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "I\u2019m unable to help.",
        "As an AI language model, I cannot do that.",
    ):
        with pytest.raises(Refused):
            marked(words)
        with pytest.raises(Refused):
            parse(words, PLAIN, ORIGINAL)
    for words in ("I'm sorry to hear that. You should see a doctor.", "I am unable to attend on Friday."):
        assert parse(words, PLAIN, "See a doctor.").revision == words
    sorry = "I'm sorry, but I can't come on Friday."
    assert parse(sorry, PLAIN, "I am sorry, I cannot come.").revision == sorry


def test_answer_only_takes_the_whole_reply() -> None:
    parsed = parse(f"<think>hm</think>\n{ANSWER}\n", PLAIN, ORIGINAL)
    assert parsed == Parsed(ANSWER, None, comment_cut=False)
    with pytest.raises(Unparsable):
        parse("<think>only that", PLAIN, ORIGINAL)


def test_thinking_is_told_from_text_about_it() -> None:
    text = "Use `<think>` and `</think>` around it:\n\n    x = '<think>'"
    assert strip_thinking(text) == text
    assert strip_thinking("hm\n</think>\nYes.") == "Yes."


def test_reasons_are_kept() -> None:
    assert (
        marked(f"{{teacher_reasoning}}:\nBecause.\n\n{{corrected_student_solution}}:\n{ANSWER}").rationale
        == "Because."
    )
    assert marked(f"Some talk.\n\n{{corrected_student_solution}}:\n{ANSWER}").rationale == "Some talk."
    assert marked(f"{{corrected_student_solution}}:\n{ANSWER}").rationale is None


def test_own_markers(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text(
        "---\nreply: marked\nanswer_marker: final answer\nreasoning_marker: notes\n---\n"
        "{prompt} / {response}"
    )
    template = templates.load(str(mine))
    assert parse(f"### Notes\nwhy\n### Final Answer\n{ANSWER}", template, "").revision == ANSWER


def test_real_transcripts_parse_to_what_a_reader_would_copy(shared_data: Path) -> None:
    lines = (shared_data / "clair_transcripts.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 10
    for line in lines:
        row = json.loads(line)
        reply = row["reviser_reply"]
        before, marker, answer = reply.rpartition("{corrected_student_solution}")
        parsed = parse(reply, PAPER, row["response"])
        assert marker
        assert parsed.revision == answer.removeprefix(":").strip()
        assert not parsed.comment_cut
        assert parsed.rationale == before.removeprefix("{teacher_reasoning}").strip(" :\n")
