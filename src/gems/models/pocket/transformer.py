"""The denoiser as a model of diffusers, which ``DiffusionPipeline.from_pretrained`` loads and saves."""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from gems.models.pocket.denoiser import Denoiser

__all__ = ["PocketTransformer"]


class PocketTransformer(Denoiser, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """See ``Denoiser``."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 96, layers: int = 4, heads: int = 4, text_width: int = 96) -> None:
        super().__init__(width, layers, heads, text_width)
