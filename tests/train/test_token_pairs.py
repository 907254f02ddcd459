"""Preference rows as tokens: what is scored, what is dropped, what is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    CHATML,
    CHATML_WITH_SYSTEM,
    GEMMA,
    LLAMA3,
    MISTRAL,
    OPENS_THINKING,
    QWEN3,
    TEMPLATES,
    WITHOUT_END,
    tiny_tokenizer,
)

from clair_apo.errors import ClairError
from clair_apo.train.encoder import Encoder
from clair_apo.train.template import Template
from clair_apo.train.tokens import (
    DROP_REASONS,
    Mismatched,
    Tokenised,
    TokenPairs,
    check_vocabulary,
    tokenise,
)

Row = dict[str, Any]


def file_of(folder: Path, *rows: Row) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(prompt: Any = "Is it so?", chosen: Any = "Yes, it is.", rejected: Any = "No.", **more: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def decoded(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))


def texts(found: Tokenised, tokenizer: Any) -> list[tuple[str, str, str]]:
    pairs = (found.pairs[i] for i in range(len(found.pairs)))
    return [tuple(decoded(tokenizer, ids) for ids in (p.prompt, p.chosen, p.rejected)) for p in pairs]


def reasons(found: Tokenised) -> list[tuple[int, str]]:
    return [(dropped.row, dropped.reason) for dropped in found.dropped]


# --- what is scored ----------------------------------------------------------------------------------


def test_a_pair_of_chatml(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    found = tokenise(file_of(tmp_path, pair()), tokenizer)
    prompt = "<|im_start|>user\nIs it so?<|im_end|>\n<|im_start|>assistant\n"
    assert texts(found, tokenizer) == [(prompt, "Yes, it is.<|im_end|>", "No.<|im_end|>")]
    assert (found.rows, found.dropped, found.notes) == (1, [], [])
    assert (found.end_of_turn, found.pinned_date) == ("<|im_end|>", None)
    pairs = found.pairs
    assert (pairs.tokens.dtype, pairs.offsets.dtype, pairs.rows.dtype) == (np.int32, np.int64, np.int64)
    assert pairs.lengths().tolist() == [
        [len(pairs[0].prompt), len(pairs[0].chosen), len(pairs[0].rejected)]
    ]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["cuts", "joins", "words"])
def test_a_prompt_has_the_tokens_that_generation_begins_with(tmp_path: Path, name: str, kind: str) -> None:
    tokenizer = tiny_tokenizer(TEMPLATES[name], cuts=kind == "cuts", words=kind == "words")
    rows = [
        pair(),
        pair(chosen="\n\nIt is.\n", rejected=" [/INST] is so"),
        pair("assistant\n", "(It)", "It"),
    ]
    template = Template(tokenizer)
    found = tokenise(file_of(tmp_path, *rows), tokenizer)
    # Where a text gets a space in front, an answer cannot always be encoded by itself.
    assert {reason for _, reason in reasons(found)} <= ({"boundary"} if kind == "words" else set())
    for at, row in enumerate(found.pairs.rows.tolist()):
        answers = [rows[row]["chosen"], rows[row]["rejected"]]
        rendered = template.render([said("user", rows[row]["prompt"])], answers)
        got = found.pairs[at]
        assert got.prompt.tolist() == tokenizer(rendered.prompt, add_special_tokens=False)["input_ids"]
        for ids, text in zip((got.chosen, got.rejected), rendered.answers, strict=True):
            whole = tokenizer(rendered.prompt + text, add_special_tokens=False)["input_ids"]
            assert decoded(tokenizer, np.concatenate([got.prompt, ids])) == tokenizer.decode(
                whole, clean_up_tokenization_spaces=False
            )
            assert ids[-1] == tokenizer.convert_tokens_to_ids(template.end_of_turn)


def test_several_turns_and_a_system_message_are_the_prompt(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    before = [said("system", "Be brief."), said("user", "A?"), said("assistant", "B."), said("user", "C?")]
    whole = {
        "chosen": [*before, said("assistant", "D.")],
        "rejected": [*before, said("assistant", "E.")],
    }
    split = {"prompt": before, "chosen": [said("assistant", "D.")], "rejected": [said("assistant", "E.")]}
    found = tokenise(file_of(tmp_path, whole, {"prompt": "C?", **whole}, split), tokenizer)
    prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in before)
    expected = (prompt + "<|im_start|>assistant\n", "D.<|im_end|>", "E.<|im_end|>")
    assert texts(found, tokenizer) == [expected] * 3
    assert len(set(found.pairs.hashes())) == 1


def test_answers_that_would_join_the_prompt_are_encoded_apart(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML, cuts=False)
    opening = "<|im_start|>assistant\n"
    alone = tokenizer(opening, add_special_tokens=False)["input_ids"]
    assert tokenizer(opening + "assistant", add_special_tokens=False)["input_ids"][: len(alone)] != alone
    found = tokenise(file_of(tmp_path, pair(chosen="assistant", rejected="Zero")), tokenizer)
    assert texts(found, tokenizer)[0][1:] == ("assistant<|im_end|>", "Zero<|im_end|>")
    assert found.pairs[0].prompt[-len(alone) :].tolist() == alone
    assert [note for note in found.notes if "1 answers are encoded apart" in note]


def test_an_answer_that_cannot_be_encoded_apart_is_dropped(tmp_path: Path) -> None:
    # By itself "assistant" would be encoded with a space before it.
    tokenizer = tiny_tokenizer(CHATML, words=True)
    rows = [pair(chosen="Zero", rejected="1."), pair(chosen="assistant", rejected="1.")]
    found = tokenise(file_of(tmp_path, *rows), tokenizer)
    assert reasons(found) == [(1, "boundary")]
    with pytest.raises(ClairError, match=r"1 × the tokenizer joins.*What to do: change chat_template"):
        tokenise(file_of(tmp_path, rows[1]), tokenizer)


def test_bos_stands_there_once(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(LLAMA3)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", bos)]
    )
    assert tokenizer("It")["input_ids"][0] == bos
    found = tokenise(file_of(tmp_path, pair()), tokenizer)
    whole = found.pairs.tokens.tolist()
    assert [at for at, token in enumerate(whole) if token == bos] == [0]


def test_a_template_that_writes_bos_twice_is_an_error(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("{{ bos_token }}" + GEMMA)
    with pytest.raises(ClairError, match="begins with two <bos>"):
        tokenise(file_of(tmp_path, pair()), tokenizer)


def test_what_a_template_does_to_answers_is_said(tmp_path: Path) -> None:
    rows = [
        pair(chosen="Yes. ", rejected="No."),
        pair(chosen="<think>\nWhy\n</think>\n\nYes.", rejected="No."),
    ]
    notes = tokenise(file_of(tmp_path, *rows), tiny_tokenizer(GEMMA)).notes
    assert notes == ["the chat template takes white space off the ends of 1 answers"]
    forgets = QWEN3.replace("'<think>\n' + thought + '\n</think>\n\n'", "''")
    notes = tokenise(file_of(tmp_path, *rows), tiny_tokenizer(forgets)).notes
    assert notes == [
        "the chat template changes or leaves out parts of 1 answers (thinking, in some models)"
    ]
    notes = tokenise(file_of(tmp_path, *rows), tiny_tokenizer(QWEN3)).notes
    assert [n for n in notes if r"writes '<think>\n\n</think>\n\n' before each answer" in n]
    notes = tokenise(file_of(tmp_path, *rows), tiny_tokenizer(CHATML_WITH_SYSTEM)).notes
    assert [n for n in notes if n.endswith("words of its own: You are tiny.")]


def test_a_pinned_date_is_said(tmp_path: Path) -> None:
    found = tokenise(file_of(tmp_path, pair()), tiny_tokenizer(LLAMA3))
    assert found.pinned_date == "2024-07-26"
    assert "the chat template asks for today's date and is told 2024-07-26" in found.notes


def test_text_without_tokens_is_said(tmp_path: Path) -> None:
    rows = [pair("Zero", "1.", "It"), pair("Zero", "語", "2.")]
    found = tokenise(file_of(tmp_path, *rows), tiny_tokenizer(CHATML, words=True))
    assert len(found.pairs) == 2
    assert "1 rows hold text that the tokenizer has no tokens for, as <unk>" in found.notes


# --- what is dropped ---------------------------------------------------------------------------------


def test_a_pair_that_does_not_fit_is_dropped_whole(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    path = file_of(tmp_path, pair(id="a"), pair("Is it so, or is it not?", "It is.", "No.", id="b"))
    (p, c, _), (longer, _, _) = tokenise(path, tokenizer).pairs.lengths().tolist()
    assert longer > p
    just = tokenise(path, tokenizer, max_length=p + c)
    assert (just.pairs.rows.tolist(), just.counts()) == ([0], {"too_long": 1})
    assert just.dropped[0].id == "b"
    assert just.dropped[0].detail.endswith(" tokens")
    with pytest.raises(ClairError, match=r"no row is left.*2 × .*What to do: raise --max-length"):
        tokenise(path, tokenizer, max_length=p + c - 1)
    narrow = tokenise(path, tokenizer, max_prompt_length=p)
    assert reasons(narrow) == [(1, "prompt_too_long")]


def test_what_teaches_nothing_is_dropped(tmp_path: Path) -> None:
    rows = [pair(), pair(chosen=""), pair(rejected=" \n"), pair(chosen="No."), pair(chosen="No. ")]
    found = tokenise(file_of(tmp_path, *rows), tiny_tokenizer(GEMMA))
    dropped = [(1, "empty_answer"), (2, "empty_answer"), (3, "identical"), (4, "identical")]
    assert reasons(found) == dropped
    assert found.reasons().startswith("2 × ")
    assert len(found.pairs) + len(found.dropped) == found.rows == 5


def test_control_tokens_in_text_are_dropped(tmp_path: Path) -> None:
    rows = [
        pair(),
        pair(chosen="Yes.<|im_end|>\n<|im_start|>user\nMore"),
        pair(rejected="<eos>"),
        pair("Say <|im_end|>."),
        pair([said("user<|im_end|>", "Why?")]),
        pair([said("system", "<pad>"), said("user", "Why?")]),
        pair("What is <|im_ end|> for?", "<think>It ends.</think>", "<im_end>"),
    ]
    found = tokenise(file_of(tmp_path, *rows), tiny_tokenizer(CHATML))
    assert reasons(found) == [(row, "control_token") for row in range(1, 6)]
    assert found.dropped[0].detail == "the text holds <|im_end|>"
    assert found.pairs.rows.tolist() == [0, 6]


def test_a_control_token_that_only_the_tokenizer_sees_is_dropped(tmp_path: Path) -> None:
    from tokenizers import AddedToken, normalizers

    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("<stop>", special=True, normalized=True)], special_tokens=True)
    found = tokenise(file_of(tmp_path, pair(), pair(chosen="Yes <STOP> it is.")), tokenizer)
    assert reasons(found) == [(1, "control_token")]


def test_rows_that_hold_no_pair_are_listed_too(tmp_path: Path) -> None:
    one, other = (
        [said("user", "A?"), said("assistant", "B.")],
        [said("user", "C?"), said("assistant", "D.")],
    )
    rows = [
        {"prompt": None, "chosen": "a", "rejected": "b", "id": "x"},
        {"prompt": "p", "chosen": None, "rejected": "b"},
        {"chosen": one, "rejected": other},
        pair(one),
        pair(),
    ]
    path = file_of(tmp_path, *rows)
    path.write_text(path.read_text() + "{broken\n")
    found = tokenise(path, tiny_tokenizer(CHATML))
    assert reasons(found) == [
        (0, "no_prompt"),
        (1, "null"),
        (2, "prompts_differ"),
        (3, "template"),
        (5, "unreadable"),
    ]
    assert found.dropped[0].id == "x"
    assert (found.rows, found.pairs.rows.tolist()) == (6, [4])
    assert {dropped.reason for dropped in found.dropped} <= set(DROP_REASONS)


def test_a_prompt_with_more_than_text_is_dropped(tmp_path: Path) -> None:
    picture = {"type": "image", "image": "x"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    silent = {"role": "assistant", "content": None}
    before = [said("user", "A?"), call, {"role": "tool", "content": "1"}]
    rows = [
        pair([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]),
        pair([{"role": "user", "content": [{"type": "text", "text": "Why?"}, picture]}]),
        pair([said("user", "A?"), call, {"role": "tool", "content": "1"}]),
        {"chosen": [*before, said("assistant", "B.")], "rejected": [*before, said("assistant", "C.")]},
        pair([said("user", "A?"), silent, said("user", "B?")]),
        pair([{**said("user", "A?"), "tool_calls": None}]),
    ]
    found = tokenise(file_of(tmp_path, *rows), tiny_tokenizer(CHATML))
    assert reasons(found) == [(row, "not_text") for row in (1, 2, 3, 4)]


def test_a_template_whose_prompts_change_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ClairError, match=r"another prompt once an answer follows.*What to do: change chat_templ"
    ):
        tokenise(file_of(tmp_path, pair()), tiny_tokenizer(OPENS_THINKING))


def test_no_pairs_at_all(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    with pytest.raises(ClairError, match="holds no preference pairs"):
        tokenise(file_of(tmp_path, {"text": "It is."}), tokenizer)
    with pytest.raises(ClairError, match="there is nothing in it"):
        tokenise(file_of(tmp_path), tokenizer)


# --- models without a template -----------------------------------------------------------------------


def test_without_a_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(None)
    path = file_of(tmp_path, pair("The answer is", " so.", " not."), pair([said("user", "A?")] * 2))
    with pytest.raises(ClairError, match="no chat template"):
        tokenise(path, tokenizer)
    found = tokenise(path, tokenizer, plain_text=True)
    assert texts(found, tokenizer) == [("The answer is", " so.<eos>", " not.<eos>")]
    assert reasons(found) == [(1, "template")]
    assert "no chat template is used" in found.notes[0]
    assert "<eos>" in found.notes[0]


def test_a_template_without_end_of_turn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClairError, match="never to stop"):
        tokenise(file_of(tmp_path, pair()), tiny_tokenizer(WITHOUT_END))


# --- rows with one answer ----------------------------------------------------------------------------


def test_rows_with_one_answer_and_a_label(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    rows: list[Row] = [
        {"prompt": "A?", "completion": "Yes.", "label": True},
        {"prompt": [said("user", "B?")], "completion": [said("assistant", "No.")], "label": 0},
        {"prompt": "C?", "completion": "No.", "label": None},
        {"prompt": "D?", "completion": "No.", "label": "false"},
    ]
    path = file_of(tmp_path, *rows)
    found = tokenise(path, tokenizer, unpaired=True)
    assert [t[1:] for t in texts(found, tokenizer)] == [
        ("Yes.<|im_end|>", ""),
        ("", "No.<|im_end|>"),
        ("", "No.<|im_end|>"),
    ]
    assert reasons(found) == [(2, "no_label")]
    with pytest.raises(ClairError, match="objectives kto and apo-zero-unpaired"):
        tokenise(path, tokenizer)


def test_rows_with_a_label_out_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    rows = [{"id": "x", "prompt": "A?", "completion": "Yes.", "label": flag} for flag in (True, False)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    tokenizer = tiny_tokenizer(CHATML)
    found = tokenise(path, tokenizer, unpaired=True)
    assert [t[1:] for t in texts(found, tokenizer)] == [("Yes.<|im_end|>", ""), ("", "Yes.<|im_end|>")]
    with pytest.raises(ClairError, match="objectives kto and apo-zero-unpaired"):
        tokenise(path, tokenizer)


def test_a_pair_becomes_two_rows_with_one_answer(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    found = tokenise(file_of(tmp_path, pair(), pair("B?")), tokenizer, unpaired=True)
    assert found.pairs.rows.tolist() == [0, 0, 1, 1]
    one_each = (found.pairs.lengths()[:, 1:] > 0).tolist()
    assert one_each == [[True, False], [False, True]] * 2


def test_mismatched_rows_have_answers_to_other_prompts(tmp_path: Path) -> None:
    found = tokenise(
        file_of(
            tmp_path, pair("A?"), pair("B?", "It is.", "Not."), pair("C?", "It stands here.", "Where?")
        ),
        tiny_tokenizer(CHATML),
        unpaired=True,
    ).pairs
    mismatched = Mismatched(found)
    assert len(mismatched) == len(found) == 6
    longest = found.lengths().sum(axis=1).max()
    for i in range(6):
        partner = int(mismatched.partners[i])
        assert mismatched[i].prompt.tolist() == found[i].prompt.tolist() != found[partner].prompt.tolist()
        assert mismatched[i].chosen.tolist() == found[partner].chosen.tolist()
        assert mismatched[i].rejected.tolist() == found[partner].rejected.tolist()
        sizes = [len(part) for part in (mismatched[i].prompt, mismatched[i].chosen, mismatched[i].rejected)]
        assert mismatched.lengths()[i].tolist() == sizes
        assert sum(sizes) <= longest
    assert not set(mismatched.hashes()) & set(found.hashes())


def test_mismatched_rows_of_one_prompt_take_the_next_answer(tmp_path: Path) -> None:
    found = tokenise(file_of(tmp_path, pair()), tiny_tokenizer(CHATML), unpaired=True).pairs
    assert Mismatched(found).partners.tolist() == [1, 0]


# --- the flat table ----------------------------------------------------------------------------------


def table(*rows: tuple[list[int], list[int], list[int]]) -> TokenPairs:
    parts = [part for row in rows for part in row]
    ends = np.cumsum([0, *map(len, parts)])
    offsets = np.array([ends[3 * i : 3 * i + 4] for i in range(len(rows))], np.int64)
    return TokenPairs(
        np.array([t for part in parts for t in part], np.int32),
        offsets,
        np.arange(len(rows), dtype=np.int64),
    )


def test_a_hash_says_which_tokens_and_where() -> None:
    rows = [([1], [2], [3]), ([1, 2], [], [3]), ([1], [2, 3], []), ([1], [2], [3]), ([1], [2], [4])]
    hashes = table(*rows).hashes()
    assert all(len(h) == 16 for h in hashes)
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 4
    assert table(*rows).content_hash() != table(*rows[::-1]).content_hash()
    assert table(*rows).content_hash() == table(*rows).content_hash()


def test_rows_are_views_of_the_flat_array(tmp_path: Path) -> None:
    found = tokenise(file_of(tmp_path, pair(), pair("B?")), tiny_tokenizer(CHATML)).pairs
    assert all(np.shares_memory(found[i].chosen, found.tokens) for i in range(2))


def test_more_rows_than_go_to_the_tokenizer_at_once(tmp_path: Path) -> None:
    rows = [pair(f"{i}?", str(i), "No.") for i in range(600)]
    seen: list[tuple[int, int | None]] = []
    tokenizer = tiny_tokenizer(CHATML)
    found = tokenise(
        file_of(tmp_path, *rows), tokenizer, on_progress=lambda done, of: seen.append((done, of))
    )
    assert found.pairs.rows.tolist() == list(range(600))
    assert [t[1] for t in texts(found, tokenizer)] == [f"{i}<|im_end|>" for i in range(600)]
    assert len(seen) == 3
    assert seen[-1][0] >= 599


# --- the encoder and its plain twin ------------------------------------------------------------------

TEXT = st.text(alphabet="aeINST []/\nsit.é語", max_size=30)


def tokenizers_of_all_kinds() -> dict[str, Any]:
    from tokenizers import normalizers, pre_tokenizers

    found = {
        "cuts": tiny_tokenizer(CHATML),
        "joins": tiny_tokenizer(CHATML, cuts=False),
        "a space in front of every piece": tiny_tokenizer(CHATML, words=True),
        "a space in front of the text": tiny_tokenizer(CHATML, words=True),
        "a space in front by a normaliser": tiny_tokenizer(CHATML, words=True),
    }
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    found["a space in front of the text"].backend_tokenizer.pre_tokenizer = first
    normalised = found["a space in front by a normaliser"].backend_tokenizer
    normalised.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    normalised.pre_tokenizer = pre_tokenizers.Sequence([])
    return found


TOKENIZERS = tokenizers_of_all_kinds()


@settings(deadline=None, max_examples=300)
@given(
    prompt=TEXT, answers=st.lists(TEXT, min_size=1, max_size=3), kind=st.sampled_from(sorted(TOKENIZERS))
)
def test_encoding_behind_the_opening_is_encoding_behind_the_prompt(
    prompt: str, answers: list[str], kind: str
) -> None:
    tokenizer = TOKENIZERS[kind]
    opening = "<|im_start|>assistant\n"
    whole = f"<|im_start|>user\n{prompt}<|im_end|>\n{opening}"
    wanted = [(0, answer + "<|im_end|>") for answer in answers]
    fast = Encoder(tokenizer, opening).encode([whole], wanted)
    plain = Encoder(tokenizer).encode([whole], wanted)
    assert fast.moved == plain.moved
    for a, b in zip([*fast.prompts, *fast.answers], [*plain.prompts, *plain.answers], strict=True):
        assert (a is None) == (b is None)
        assert a is None or a.tolist() == b.tolist()


# --- vocabulary --------------------------------------------------------------------------------------


def test_a_vocabulary_beyond_the_head_is_an_error() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    size = len(tokenizer)
    check_vocabulary(tokenizer, size)
    check_vocabulary(tokenizer, size + 64)
    with pytest.raises(ClairError, match=rf"up to number {size - 1}.*only {size - 1} rows"):
        check_vocabulary(tokenizer, size - 1)
    # The last tokens are added ones, which no pair may hold.
    check_vocabulary(tokenizer, size - 1, table(([1], [2], [size - 2])))
    with pytest.raises(ClairError):
        check_vocabulary(tokenizer, size - 1, table(([1], [2], [size - 1])))
    with pytest.raises(ClairError):
        check_vocabulary(tokenizer, size - 10, table(([1], [2], [3])))


# --- real pairs, and TRL -----------------------------------------------------------------------------


def trl_tokens(rows: list[Row], tokenizer: Any, folder: Path) -> list[Row]:
    """What TRL's DPOTrainer makes of conversational pairs."""
    import datasets
    import transformers
    import trl

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(tokenizer), **small))
    config = trl.DPOConfig(output_dir=str(folder), max_length=None, report_to=[], use_cpu=True, bf16=False)
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    model.save_pretrained(folder)
    trainer = trl.DPOTrainer(
        model=str(folder),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return list(trainer.train_dataset)


@pytest.mark.parametrize("name", ["chatml", "gemma", "mistral"])
def test_real_pairs_as_trl_tokenises_them(shared_data: Path, tmp_path: Path, name: str) -> None:
    import pyarrow.parquet as pq

    tokenizer = tiny_tokenizer({"chatml": CHATML, "gemma": GEMMA, "mistral": MISTRAL}[name])
    source = shared_data / "pairs_revision.parquet"
    found = tokenise(source, tokenizer, max_length=1 << 20)
    assert found.counts() == {"identical": 14}
    rows = [
        {
            "prompt": [said("user", row["prompt"])],
            "chosen": [said("assistant", row["chosen"])],
            "rejected": [said("assistant", row["rejected"])],
        }
        if isinstance(row["prompt"], str)
        else row
        for row in pq.read_table(source).to_pylist()
    ]
    theirs = trl_tokens(rows, tokenizer, tmp_path)
    end = tokenizer.convert_tokens_to_ids(found.end_of_turn)
    for at, row in enumerate(found.pairs.rows.tolist()):
        ours = found.pairs[at]
        assert ours.prompt.tolist() == theirs[row]["prompt_ids"]
        for ids, other in (
            (ours.chosen, theirs[row]["chosen_ids"]),
            (ours.rejected, theirs[row]["rejected_ids"]),
        ):
            # TRL also scores the line feed behind the end of turn, which no model has to write.
            assert ids.tolist() == other[: other.index(end) + 1]
            assert len(other) - len(ids) == (0 if name == "mistral" else 1)
