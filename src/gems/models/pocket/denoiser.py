"""The denoiser of the pocket generator: a small transformer over the slots of a scene, guided by text and time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gems.models.pocket.scene import NUM_SLOTS, SLOT_DIM

__all__ = ["Denoiser"]

_TIME_FEATURES = 64


class _Attention(nn.Module):
    """Multi-head attention of ``x`` (batch, n, width) to ``context`` (batch, m, context_width)."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        def split(h: Tensor) -> Tensor:
            return h.reshape(*h.shape[:2], self.heads, -1).transpose(1, 2)

        key, value = self.key_value(context).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(split(self.query(x)), split(key), split(value), attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention between slots, attention from slots to words, then an MLP; time modulates the first and the last.

    The modulation by time is shared between blocks except for a table of offsets (PixArt-alpha, arXiv 2310.00426).
    """

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.cross_norm = nn.LayerNorm(width)
        self.attention = _Attention(width, width, heads)
        self.cross_attention = _Attention(width, text_width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        # Shift, scale and gate of the attention and of the MLP. Gates start open, which trains twice as fast.
        gates = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.0])[:, None]
        self.modulation = nn.Parameter(gates + torch.randn(6, width) / math.sqrt(width))

    def forward(self, x: Tensor, time: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (time + self.modulation).unsqueeze(2).unbind(1)
        h = self.norm(x) * (1 + scale) + shift
        x = x + gate * self.attention(h, h)
        x = x + self.cross_attention(self.cross_norm(x), text, mask)
        update: Tensor = self.mlp(self.norm(x) * (1 + mlp_scale) + mlp_shift)
        return x + mlp_gate * update


class Denoiser(nn.Module):
    """Estimates the clean slots behind noisy ones.

    With slots x(s) = (1 - s) x0 + s noise, s in [0, 1], the network returns its estimate of x0. The velocity
    that a flow-matching scheduler integrates is then (x(s) - x0) / s. Estimating x0 rather than the velocity spares a
    narrow network from carrying the noise through its layers.

    Args:
        width: Channels of a slot inside the network.
        layers: Number of blocks.
        heads: Attention heads of ``width / heads`` channels.
        text_width: Channels of the text encoder's states.
        slots: Number of slots.
        slot_dim: Numbers of a slot.
    """

    def __init__(
        self,
        width: int = 96,
        layers: int = 4,
        heads: int = 4,
        text_width: int = 96,
        slots: int = NUM_SLOTS,
        slot_dim: int = SLOT_DIM,
    ) -> None:
        super().__init__()
        self.slot_in = nn.Linear(slot_dim, width)
        self.position = nn.Parameter(0.5 * torch.randn(slots, width))
        self.time_in = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(_Block(width, text_width, heads) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.slot_out = nn.Linear(width, slot_dim)

    def forward(self, slots: Tensor, noise_level: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Estimate the clean slots.

        Args:
            slots: Noisy slots, (batch, slots, slot_dim).
            noise_level: s, (batch,).
            text: States of the text encoder, (batch, tokens, text_width).
            text_mask: True for real tokens, False for padding, (batch, tokens).

        Returns:
            Clean slots, (batch, slots, slot_dim).
        """
        x = self.slot_in(slots) + self.position
        time = self.time_in(_time_features(noise_level)).unflatten(-1, (6, -1))
        mask = text_mask[:, None, None, :].bool()
        for block in self.blocks:
            x = block(x, time, text, mask)
        return self.slot_out(self.norm_out(x))  # type: ignore[no-any-return]


def _time_features(noise_level: Tensor) -> Tensor:
    """Sines and cosines of s, (batch, 64), with wavelengths from 1/50 to 6."""
    frequencies = torch.exp(torch.linspace(0, math.log(300), _TIME_FEATURES // 2, device=noise_level.device))
    angles = noise_level[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(noise_level.dtype)
