"""What a model's config says of its layers and heads."""

from __future__ import annotations

from typing import Any


def layers_of(config: Any) -> list[Any]:
    """The configs of its layers: one for all of them, unless they differ (Gemma 4)."""
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text]


def uneven(config: Any, multiple: int, most: int | None = None) -> str | None:
    """Why heads are not all of one width that is a multiple of `multiple`, and at most `most`; or None."""
    for layer in layers_of(config):
        size = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
        size = getattr(layer, "qk_head_dim", None) or size  # latent attention, whose head_dim is a part
        values = getattr(layer, "v_head_dim", None) or size
        if values != size:
            return f"its heads have values of {values} numbers and keys of {size}"
        if size % multiple or size > (most or size):
            limit = f" and at most {most}" if most else ""
            return f"its heads must be a multiple of {multiple} wide{limit}, and these are {size}"
    return None
