"""What is sent of a model to processes that do not load it."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model

from clair_apo.errors import ClairError
from clair_apo.train.shards import unpickled, without_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_all_but_the_contents_of_parameters_arrives(family: str) -> None:
    model = tiny_model(family)
    model.get_input_embeddings().weight.requires_grad_(False)
    data = without_parameters(model)
    assert len(data) < 4 * model.num_parameters() / 4
    other = unpickled(data)
    for (name, a), (again, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert name == again
        assert b.is_meta
        assert (a.shape, a.dtype, a.requires_grad) == (b.shape, b.dtype, b.requires_grad)
    buffers = dict(other.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert other.config.to_dict() == model.config.to_dict()


def test_tied_weights_stay_tied() -> None:
    other = unpickled(without_parameters(tiny_model("Llama", tie_word_embeddings=True)))
    assert other.get_input_embeddings().weight is other.get_output_embeddings().weight


def test_a_model_that_cannot_be_sent_is_said() -> None:
    model = tiny_model("Llama")
    model.model.norm.function = lambda x: x
    with pytest.raises(ClairError, match=r"cannot be sent to other processes .*--sharding ddp"):
        without_parameters(model)
