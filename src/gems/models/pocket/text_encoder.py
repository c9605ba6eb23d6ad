"""The pocket generator's text encoder: that of CLIP (arXiv 2103.00020), as ``transformers.CLIPTextModel`` computes it.

It reads the same weights. Importing the original takes longer than drawing ten images with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["TextEncoder"]


class Encoded(NamedTuple):
    """The states of the words, (batch, tokens, width)."""

    last_hidden_state: Tensor


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        def split(h: Tensor) -> Tensor:
            return h.view(*h.shape[:2], self.heads, -1).transpose(1, 2)

        query, key, value = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))  # type: ignore[no-any-return]  # the GELU of CLIP


class _Layer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(width, heads), _MLP(width, hidden)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """Words to states; each word sees itself and those before it.

    Args:
        config: The content of ``config.json`` of a ``CLIPTextModel``. The names of the parameters are the original's.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, hidden, heads = (config[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads"))
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(config["vocab_size"], width),
                "position_embedding": nn.Embedding(config["max_position_embeddings"], width),
            }
        )
        layers = nn.ModuleList(_Layer(width, hidden, heads) for _ in range(config["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(width)

    def embed(self, ids: Tensor) -> Tensor:
        """The embeddings of tokens, before their positions are added."""
        return self.embeddings["token_embedding"](ids)  # type: ignore[no-any-return]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """The states of the words of ids (batch, tokens), of which the mask (batch, tokens) is 0 for padding."""
        length = input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device)
        x = self.embed(input_ids) + self.embeddings["position_embedding"](positions)
        mask = None
        if not attention_mask.all():
            causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            mask = causal & attention_mask.bool()[:, None, None, :]
        layers: Any = self.encoder["layers"]
        for layer in layers:
            x = layer(x, mask)
        return Encoded(self.final_layer_norm(x))
