"""The networks of the open generator: an encoder of what a prompt means, and a denoiser of slots that it guides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gems.models.open.slots import NUM_SLOTS, SLOT_DIM, VECTOR
from gems.models.open.tokens import MAX_TOKENS, TOKENS, Encoded
from gems.models.pocket.denoiser import Denoiser
from gems.models.pocket.text_encoder import TextEncoder

__all__ = ["OpenModel"]


class _PromptEncoder(TextEncoder):
    """A text encoder whose nouns are vectors rather than words of a list, so that it reads nouns it never saw."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.thing_in = nn.Linear(VECTOR, config["hidden_size"])
        self._vectors: Tensor | None = None

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens; those of nouns have their vectors added."""
        words: Tensor = self.embeddings["token_embedding"](ids)
        return words if self._vectors is None else words + self.thing_in(self._vectors)

    def read(self, ids: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """States (batch, tokens, width) of token ids and nouns' vectors."""
        self._vectors = vectors * (vectors.square().sum(-1, keepdim=True) > 0)
        try:
            return self(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[no-any-return]
        finally:
            self._vectors = None


class OpenModel(nn.Module):
    """Encoder and denoiser.

    Args:
        width: Channels of a slot in the denoiser.
        layers: Blocks of the denoiser.
        heads: Attention heads of both.
        text_width: Channels of a token.
        text_layers: Layers of the encoder.
    """

    def __init__(self, width: int, layers: int, heads: int, text_width: int, text_layers: int) -> None:
        super().__init__()
        self.encoder = _PromptEncoder(
            {
                "hidden_size": text_width,
                "intermediate_size": 4 * text_width,
                "num_attention_heads": heads,
                "vocab_size": len(TOKENS),
                "max_position_embeddings": MAX_TOKENS,
                "num_hidden_layers": text_layers,
            }
        )
        self.denoiser = Denoiser(width, layers, heads, text_width, NUM_SLOTS, SLOT_DIM)

    def read(self, prompts: Encoded) -> tuple[Tensor, Tensor]:
        """The encoder's states of prompts, and the mask of real tokens."""
        ids, vectors, mask = (torch.from_numpy(a) for a in prompts)
        return self.encoder.read(ids, vectors, mask), mask
