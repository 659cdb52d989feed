"""What a position embedding may do; everything is optional, and does nothing by default.

Shape legend: B batch, T queries, S keys, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import Cache


class Positions(nn.Module):
    """Base of the position embeddings. They act on the embeddings (`embed`), on queries and keys (`rotation`) or on
    the attention scores (`bias`).

    Its buffers stay in float32 when the model is cast (`model.half()`): a frequency or slope that is rounded is wrong
    in proportion to the distance.
    """

    # Whether positions themselves count, not only distances: then tokens are numbered without the padding.
    absolute = False
    # The attention backends that take a bias of the scores, for positions that have one; None: any will do.
    backends: tuple[str, ...] | None = None
    title = ""

    @classmethod
    def check_backend(cls, attn_implementation: str | None) -> None:
        """Refuse an attention backend that takes no bias, so that it is never dropped in silence."""
        if attn_implementation is None or cls.backends is None or attn_implementation in cls.backends:
            return
        raise ValueError(
            f'Specified `attn_implementation="{attn_implementation}"` is not supported: it would drop the {cls.title}'
            f" bias of this model (position_embedding_type). Use one of {', '.join(cls.backends[:3])}."
        )

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """(B, T, hidden_size) embeddings at `position_ids` (B or 1, T) -> the same with positions, if `absolute`."""
        return inputs_embeds

    def rotation(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine, each (B or 1, T, D), that `rotate` takes for queries and keys."""
        return None

    def mask_options(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the function that makes the attention mask must be told."""
        return {}

    def bias(
        self, mask: Any, *, hidden_states: Tensor, past_key_values: Cache | None, layer_idx: int, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The attention mask with the bias of the scores in it, and further arguments of the attention.

        Args:
            mask: what transformers made for the backend: (B, 1, T, S), boolean or additive, a `BlockMask` or None.
            hidden_states: (B, T, hidden_size), for length, dtype and device.
            past_key_values: cache, asked how far its keys reach.
            layer_idx: a layer whose cache has the length that `mask` was made for.
            kwargs: of continuous batching, the lengths of the sequences that one row holds.

        Raises:
            ValueError: the attention backend would drop the bias.
        """
        return mask, {}

    def reset_buffers(self) -> None:
        """Compute the buffers anew, as after loading from the meta device."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Positions:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self
