"""Small pictures of an unfinished image, computed from its latents at almost no cost.

Decoding latents with the autoencoder costs about as much as a denoising step. But a pixel of a small picture is nearly
a linear function of the latents at its position. To find that function, the autoencoder encodes a chart of colours, and
least squares fits the map from the latents back to the colours.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Previews", "unpacked"]

_MAX_SIDE: Final = 128
"""The longer side of a preview, in pixels."""
_CELLS: Final = 8
"""The chart has 8 x 8 fields of one colour each."""
_REPEAT: Final = 4
"""Each field covers 4 x 4 positions of the latents, so that most positions see one colour only."""

_LOG: Final = logging.getLogger(__name__)


class Previews:
    """Draws previews for one pipeline. A pipeline whose latents it cannot read has no previews."""

    def __init__(self, pipeline: Any) -> None:
        self._fit: tuple[Tensor, Tensor] | None = None
        try:
            self._fit = _fit(pipeline)
            pipeline.maybe_free_model_hooks()  # offloads the autoencoder again
        except Exception as error:  # a missing preview must not fail the run
            _LOG.info("no previews for %s: %s", type(pipeline).__name__, error)

    def draw(self, pipeline: Any, latents: Tensor, aspect: float) -> list[Image.Image | None]:
        """One picture, or None, for each image of a batch.

        Args:
            pipeline: The pipeline that is drawing.
            latents: Its latents; the first dimension is the batch.
            aspect: Width divided by height of the images, to unpack packed latents.
        """
        if self._fit is None:
            return [None] * len(latents)
        try:
            slopes, offsets = self._fit
            grid = unpacked(pipeline.vae, latents, aspect, channels=len(slopes)).float().cpu()
            colours = grid.movedim(1, -1) @ slopes + offsets
            pixels = (colours.clamp(0, 1) * 255).round().byte().numpy()
        except Exception as error:
            _LOG.info("no preview of %s: %s", type(pipeline).__name__, error)
            return [None] * len(latents)
        return [_sized(Image.fromarray(np.ascontiguousarray(p))) for p in pixels]


def _fit(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Slopes (channels, 3) and offsets (3,) of the linear map from the denoiser's latents to RGB in [0, 1]."""
    import torch

    vae, scale = pipeline.vae, pipeline.vae_scale_factor
    chart = torch.rand((1, 3, _CELLS, _CELLS), generator=torch.Generator().manual_seed(0))
    side = _CELLS * _REPEAT * scale
    image = torch.nn.functional.interpolate(chart, (side, side), mode="nearest")
    latents = _normalised(vae, _encoded(vae, (2 * image - 1).to(pipeline._execution_device, vae.dtype))).float().cpu()
    if not latents.isfinite().all():
        raise ValueError("the autoencoder overflows in this number type")
    target = torch.nn.functional.interpolate(chart, latents.shape[2:], mode="nearest")
    inputs, colours = (x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (latents, target))
    centre = inputs.mean(0)
    # gelsd gives no weight to channels that are the same for all colours, such as those for texture.
    slopes: Tensor = torch.linalg.lstsq(inputs - centre, colours - colours.mean(0), driver="gelsd").solution
    return slopes, colours.mean(0) - centre @ slopes


def _encoded(vae: Any, image: Tensor) -> Tensor:
    """Latents (1, channels, height, width) of an image, by any of diffusers' autoencoders."""
    import torch

    video = hasattr(vae.config, "temperal_downsample")
    if vae.config.get("in_channels") == 4:
        image = torch.cat([image, torch.ones_like(image[:, :1])], 1)  # opaque
    with torch.no_grad():
        output = vae.encode(image.unsqueeze(2) if video else image)
    if hasattr(output, "latent_dist"):
        latents: Tensor = output.latent_dist.mode()
    else:
        latents = output[0]
    return latents.squeeze(2) if video else latents


def _normalised(vae: Any, latents: Tensor) -> Tensor:
    """Latents of the autoencoder in the scale of the denoiser."""
    import torch

    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        return (latents - torch.tensor(mean).to(latents).view(shape)) / torch.tensor(std).to(latents).view(shape)
    shift, scale = (getattr(vae.config, name, None) for name in ("shift_factor", "scaling_factor"))
    return (latents - (shift or 0.0)) * float(scale or 1.0)


def unpacked(vae: Any, latents: Tensor, aspect: float, channels: int) -> Tensor:
    """Latents as (batch, channels, height, width), from whatever layout a pipeline uses.

    Pipelines pack the latents of P x P positions into one, in a row of tokens or in a grid. All of them keep the
    positions of a channel together.

    Args:
        vae: The autoencoder. That of Flux2 normalises packed latents with statistics of its own.
        latents: The denoiser's latents: a row of tokens, a grid, or a grid with one frame.
        aspect: Width divided by height of the images.
        channels: The channels of the autoencoder's latents.
    """
    import torch

    if latents.ndim == 3:
        height = round(math.sqrt(latents.shape[1] / aspect))
        latents = latents.transpose(1, 2).reshape(len(latents), latents.shape[2], height, -1)
    grid = latents.squeeze(2) if latents.ndim == 5 else latents
    norm = getattr(vae, "bn", None)
    if norm is not None and norm.num_features == grid.shape[1]:
        scale = (norm.running_var + norm.eps).sqrt()
        grid = grid * scale.to(grid).view(1, -1, 1, 1) + norm.running_mean.to(grid).view(1, -1, 1, 1)
    return torch.nn.functional.pixel_shuffle(grid, math.isqrt(grid.shape[1] // channels))


def _sized(image: Image.Image) -> Image.Image:
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return image
