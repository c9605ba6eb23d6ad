"""Small pictures of an unfinished image, from its latents, for next to nothing.

Decoding latents costs about as much as a step. But each pixel of a small picture is nearly a linear function of the
latents at its place, and the autoencoder itself says which: it encodes a chart of colours, and least squares finds the
function that leads from its latents back to the colours.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Previews"]

_LARGEST: Final = 128
"""Pixels on the longer side of a preview."""
_CELLS: Final = 8
"""The chart has 8 x 8 colours ..."""
_REPEAT: Final = 4
"""... each over 4 x 4 places of the latents, so that most of them see one colour only."""

_log = logging.getLogger(__name__)


class Previews:
    """Draws previews for one pipeline; pipelines whose latents it cannot read have none."""

    def __init__(self, pipeline: Any) -> None:
        self._fit: tuple[Tensor, Tensor] | None = None
        try:
            self._fit = _fit(pipeline)
            pipeline.maybe_free_model_hooks()  # with offloading, the autoencoder goes back to where it was
        except Exception as error:  # a run must never fail for want of a preview
            _log.info("no previews for %s: %s", type(pipeline).__name__, error)

    def draw(self, pipeline: Any, latents: Tensor, aspect: float) -> list[Image.Image | None]:
        """One picture for each image of a batch of latents; ``aspect`` is width over height, for packed latents."""
        if self._fit is None:
            return [None] * len(latents)
        try:
            grid = _unpacked(pipeline, latents, aspect).float().cpu()
            slopes, offsets = self._fit
            colours = grid.movedim(1, -1) @ slopes + offsets
            pixels = (colours.clamp(0, 1) * 255).round().byte().numpy()
        except Exception as error:
            _log.info("no preview of %s: %s", type(pipeline).__name__, error)
            return [None] * len(latents)
        return [_sized(Image.fromarray(np.ascontiguousarray(p))) for p in pixels]


def _fit(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Slopes (channels, 3) and offsets (3,) that lead from the denoiser's latents to RGB in [0, 1]."""
    import torch

    vae, scale = pipeline.vae, pipeline.vae_scale_factor
    chart = torch.rand((1, 3, _CELLS, _CELLS), generator=torch.Generator().manual_seed(0))
    target = chart.repeat_interleave(_REPEAT, 2).repeat_interleave(_REPEAT, 3)
    image = target.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    image = (2 * image - 1).to(pipeline._execution_device, vae.dtype)
    video = hasattr(vae.config, "temperal_downsample")
    with torch.no_grad():
        latents = vae.encode(image.unsqueeze(2) if video else image).latent_dist.mode()
    latents = _normalised(vae, latents.squeeze(2) if video else latents).float().cpu()
    if not latents.isfinite().all():
        raise ValueError("the autoencoder overflows in this number type")
    known, colours = (x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (latents, target))
    centre = known.mean(0)
    # gelsd copes with channels that the chart does not move, such as those for texture: they get no weight.
    slopes: Tensor = torch.linalg.lstsq(known - centre, colours - colours.mean(0), driver="gelsd").solution
    return slopes, colours.mean(0) - centre @ slopes


def _normalised(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the denoiser sees them."""
    import torch

    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        return (latents - torch.tensor(mean).to(latents).view(shape)) / torch.tensor(std).to(latents).view(shape)
    shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, float(vae.config.scaling_factor)
    return (latents - shift) * scale


def _unpacked(pipeline: Any, latents: Tensor, aspect: float) -> Tensor:
    """Latents of shape (batch, channels, height, width), whatever form the pipeline keeps them in."""
    if latents.ndim == 3:  # packed: a row for each 2 x 2 places
        height = round(math.sqrt(latents.shape[1] / aspect))
        width, side = latents.shape[1] // height, 2 * pipeline.vae_scale_factor
        latents = pipeline._unpack_latents(latents, height * side, width * side, pipeline.vae_scale_factor)
    return latents.squeeze(2) if latents.ndim == 5 else latents


def _sized(image: Image.Image) -> Image.Image:
    image.thumbnail((_LARGEST, _LARGEST))
    return image
