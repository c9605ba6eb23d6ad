"""The pocket text-to-image pipeline: words in, 512 x 512 pixels out, on a CPU, in well under a second.

It is an ordinary ``diffusers.DiffusionPipeline``: a tokenizer, a text encoder, a transformer that denoises the slots
of a scene under a flow-matching scheduler, and a decoder that draws the slots. It is called, saved and loaded like any
other pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTextModel, ImageProcessingMixin, PreTrainedTokenizerFast

from gems.models.pocket.drawing import Drawing, Pictures
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import decode_slots
from gems.models.pocket.transformer import PocketTransformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PocketPipeline", "PocketPipelineOutput", "SlotDecoder"]


class SlotDecoder(ImageProcessingMixin):  # type: ignore[misc]
    """Draws slots as pixels: what a VAE decoder does for latents, vector sprites do here. It has no weights."""

    def __init__(self, size: int = 512, **settings: Any) -> None:
        super().__init__(**settings)
        self.size = size

    def __call__(self, slots: NDArray[np.float32], style: int) -> Image.Image:
        """Draw slots of shape (NUM_SLOTS, SLOT_DIM) as an RGB image of ``size`` x ``size`` pixels."""
        return draw_scene(decode_slots(slots), style=style, size=self.size)


@dataclass
class PocketPipelineOutput(Pictures, BaseOutput):  # type: ignore[misc]
    """The result, as an output of diffusers."""


class PocketPipeline(Drawing, DiffusionPipeline):  # type: ignore[misc]
    """Text to image in the pocket vocabulary."""

    model_cpu_offload_seq = "text_encoder->transformer"
    output = PocketPipelineOutput

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        text_encoder: CLIPTextModel,
        transformer: PocketTransformer,
        scheduler: FlowMatchEulerDiscreteScheduler,
        decoder: SlotDecoder,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            transformer=transformer,
            scheduler=scheduler,
            decoder=decoder,
        )

    @property
    def words(self) -> Tokenizer:
        """The tokenizer, without what transformers puts around it."""
        words: Tokenizer = self.tokenizer.backend_tokenizer
        return words
