from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import Pair, random_pair, some_pairs

from clair_apo.train.packing import pack, packed_tokens, shared_answer


def test_a_pair_lies_as_prefix_chosen_rejected() -> None:
    pair = Pair(*(np.array(x, np.int32) for x in ([10, 11], [20, 21, 22], [20, 31])))
    packed = pack([pair])
    assert packed.input_ids.tolist() == [[10, 11, 20, 21, 22, 31]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    # The shared 20, then 21 and 22, then 31, which the last shared token predicts as well.
    assert packed.rows.tolist() == [1, 2, 3, 2]
    assert packed.targets.tolist() == [20, 21, 22, 31]
    assert packed.branches == ((0, 3, 2, 1),)
    assert packed.entries == ((0, 1, 2, 1),)


def test_without_sharing_both_answers_are_sequences_of_their_own() -> None:
    pair = Pair(*(np.array(x, np.int32) for x in ([10, 11], [20, 21, 22], [20, 31])))
    packed = pack([pair], share=False)
    assert packed.input_ids.tolist() == [[10, 11, 20, 21, 22, 10, 11, 20, 31]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert packed.rows.tolist() == [1, 2, 3, 6, 7]
    assert packed.targets.tolist() == [20, 21, 22, 20, 31]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 4), st.integers(0, 5), st.integers(0, 5)),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
    st.integers(0, 1000),
)
def test_every_answer_token_is_predicted_by_the_token_before_it(
    shapes: list[tuple[int, int, int, int]], share: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pairs = [random_pair(rng, *shape) for shape in shapes]
    packed = pack(pairs, share=share)
    assert packed.tokens == sum(packed_tokens(pair, share=share) for pair in pairs)
    ids, positions = packed.input_ids[0].tolist(), packed.position_ids[0].tolist()
    for pair, entry in zip(pairs, packed.entries, strict=True):
        found = []
        split = entry.start + entry.shared + entry.chosen
        for parts in (
            [(entry.start, split)],
            [(entry.start, entry.start + entry.shared), (split, split + entry.rejected)],
        ):
            places = [i for first, last in parts for i in range(first, last)]
            rows = [int(packed.rows[i]) for i in places]
            found.append(([ids[row] for row in rows], [int(packed.targets[i]) for i in places], rows))
        for side, (before, targets, rows) in zip((pair.chosen, pair.rejected), found, strict=True):
            if not share and not len(side):
                continue
            assert targets == side.tolist()
            assert before == ([int(pair.prompt[-1]), *side[:-1].tolist()] if len(side) else [])
            length = len(pair.prompt)
            assert [positions[row] for row in rows] == list(range(length - 1, length - 1 + len(side)))


def test_shared_answers() -> None:
    assert [shared_answer(pair) for pair in some_pairs()] == [3, 0, 4, 5, 0, 0]


@pytest.mark.parametrize("share", [True, False])
def test_a_missing_answer_takes_no_room(share: bool) -> None:
    pair = some_pairs()[4]
    assert packed_tokens(pair, share=share) == len(pair.prompt) + len(pair.chosen)
