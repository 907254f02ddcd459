"""How likely the answers of pairs are to a model: a diagnosis beside the advice, and no evidence for it.

A model's own answers always look likelier to it, so this cannot say which answers are better. It shows how
far the pairs lie from what the model writes: chosen answers that are much less likely than rejected ones
are answers in another voice, or the rejected ones are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from clair_apo.train.load import load_model, load_tokenizer
from clair_apo.train.packing import pack
from clair_apo.train.policy import Policy
from clair_apo.train.tokens import check_vocabulary, tokenise


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Means over `pairs`: log-probability in nats a token of chosen and rejected answers, and the share of
    pairs whose chosen answer is the likelier one, token for token."""

    pairs: int
    chosen: float
    rejected: float
    chosen_likelier: float

    def text(self) -> str:
        """What a terminal shows."""
        return (
            f"likelihoods of {self.pairs:,} pairs, a diagnosis and no evidence: a model's own answers "
            f"always look likelier to it\n  chosen {self.chosen:+.3f} nats a token, "
            f"rejected {self.rejected:+.3f}; chosen is likelier in {self.chosen_likelier:.0%}"
        )

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


def likelihoods(
    pairs: str, model: str, count: int, on_progress: Callable[[int, int | None], None] | None = None
) -> Likelihoods:
    """Runs `model` over `count` pairs of the file, evenly spread, each answer by itself.

    Raises ClairError where the model or the pairs cannot be read.
    """
    tokenizer = load_tokenizer(model)
    found = tokenise(pairs, tokenizer).pairs
    places = sorted({len(found) * k // count for k in range(count)})
    cuda = torch.cuda.is_available()
    loaded = load_model(model, torch.bfloat16 if cuda else torch.float32)
    check_vocabulary(tokenizer, loaded.get_output_embeddings().weight.shape[0], found)
    policy = Policy(loaded.to("cuda" if cuda else "cpu"), share=False).eval()
    rates = []
    for done, place in enumerate(places, 1):
        batch = pack([found[place]], share=False).to(loaded.device)
        with torch.no_grad():
            _, chosen, rejected = policy(batch, lambda chosen, rejected, _: chosen)
        pair = found[place]
        rates.append([float(chosen) / len(pair.chosen), float(rejected) / len(pair.rejected)])
        if on_progress is not None:
            on_progress(done, len(places))
    means = torch.tensor(rates, dtype=torch.float64)
    likelier = (means[:, 0] > means[:, 1]).double().mean()
    of_chosen, of_rejected = means.mean(0).tolist()
    return Likelihoods(len(places), of_chosen, of_rejected, float(likelier))
