"""MiniLM's network: BERT (arXiv 1810.04805) as ``transformers.BertModel`` computes it, from the same weights.

Importing the original takes ten times as long as embedding a text with it, and every run embeds one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["TextNetwork"]

_PAD: Final = "[PAD]"


class TextNetwork:
    """Texts to states of their tokens.

    Args:
        folder: The folder with ``config.json`` and ``tokenizer.json``.
        weights: The content of ``model.safetensors``.
        max_tokens: Longer texts are truncated.
    """

    def __init__(self, folder: Path, weights: bytes, max_tokens: int) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._weights = load(weights)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(pad_id=self._tokenizer.token_to_id(_PAD), pad_token=_PAD)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """The states (batch, tokens, width), and the mask of tokens that are no padding (batch, tokens)."""
        encodings = self._tokenizer.encode_batch(texts)
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        attended = None if mask.all() else mask.bool()[:, None, None, :]
        x = self._normalized("embeddings", self._embedded(ids))
        for index in range(self._layers):
            x = self._layer(f"encoder.layer.{index}", x, attended)
        return x, mask

    def _embedded(self, ids: Tensor) -> Tensor:
        words, types, positions = (
            self._weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type", "position")
        )
        return words[ids] + types[0] + positions[: ids.shape[1]]

    def _layer(self, name: str, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention, then an MLP; what each adds is normalized after it."""
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", x).view(*x.shape[:2], self._heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self._normalized(f"{name}.attention.output", self._linear(f"{name}.attention.output.dense", mixed) + x)
        hidden = F.gelu(self._linear(f"{name}.intermediate.dense", x))
        return self._normalized(f"{name}.output", self._linear(f"{name}.output.dense", hidden) + x)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normalized(self, name: str, x: Tensor) -> Tensor:
        scale, shift = self._weights[f"{name}.LayerNorm.weight"], self._weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, x.shape[-1:], scale, shift, self._epsilon)
