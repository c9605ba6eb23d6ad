"""Diffusers pipelines of real models' shapes with random weights, made on the device and handed to GEMS as they are.

Their images are noise, but they do the work of the trained models. Nothing is downloaded. Only the small files that say
what a pipeline is are written, so GEMS finds defaults and options as for a downloaded model; where it would load the
weights, it is given the pipeline that is there.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import diffusers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from gems.models.diffusers import loading, replicas
from gems.models.diffusers.backend import DiffusersGenerator
from gems.options import GeneratorOptions

__all__ = ["SIZES", "RandomModel", "Sizes", "random_model"]

_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DEVIATION: Final = 0.02
"""Standard deviation of the weights of transformers, as in Qwen3's own initialisation."""


@dataclass(frozen=True)
class Sizes:
    """The shapes of a model's parts.

    Attributes:
        text: Entries of the text encoder's configuration.
        width: Width of the transformer.
        heads: Attention heads of the transformer.
        layers: Blocks of the transformer; for FLUX.2, double-stream and single-stream ones.
        channels: Channels of the autoencoder's blocks.
        latents: Channels of the latents.
    """

    text: dict[str, int]
    width: int
    heads: int
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    latents: int


_QWEN3_4B: Final = {
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
}
_SMALL_QWEN3: Final = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 28,  # FLUX.2-klein reads the ninth, eighteenth and twenty-seventh
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
_SMALL_CHANNELS: Final = (8, 8, 16, 16)
_CHANNELS: Final = (128, 256, 512, 512)

SIZES: Final[dict[str, dict[str, Sizes]]] = {
    # https://huggingface.co/black-forest-labs/FLUX.2-klein-4B: 5 and 20 blocks of width 3072; its text encoder is
    # Qwen3-4B, of which three layers are read.
    "flux2-klein-4b": {
        "full": Sizes(_QWEN3_4B, 3072, 24, (5, 20), _CHANNELS, 32),
        "small": Sizes(_SMALL_QWEN3, 64, 4, (1, 3), _SMALL_CHANNELS, 4),
        "tiny": Sizes(_SMALL_QWEN3, 32, 2, (1, 1), _SMALL_CHANNELS[:2], 2),
    },
    # https://huggingface.co/Tongyi-MAI/Z-Image-Turbo: 30 blocks of width 3840; its text encoder is Qwen3-4B.
    "z-image-turbo": {
        "full": Sizes(_QWEN3_4B, 3840, 30, (30,), _CHANNELS, 16),
        "small": Sizes(_SMALL_QWEN3, 64, 4, (4,), _SMALL_CHANNELS, 16),
        "tiny": Sizes(_SMALL_QWEN3 | {"num_hidden_layers": 2}, 32, 2, (1,), _SMALL_CHANNELS[:2], 4),
    },
}
"""By model: its real shapes, and smaller ones for a CPU."""


@dataclass(frozen=True)
class RandomModel:
    """A pipeline with random weights, and the folder under which GEMS knows it."""

    name: str
    folder: Path
    pipeline: Any
    options: GeneratorOptions
    """The device, and the size and steps of images."""

    def generator(self, **changes: Any) -> DiffusersGenerator:
        """GEMS' generator for this pipeline, with these options changed."""
        options = self.options.model_copy(update=changes)
        return DiffusersGenerator(str(self.folder), name=f"diffusers:{self.name}", options=options)

    @property
    def parameters(self) -> dict[str, int]:
        """The number of weights of each part."""
        parts = self.pipeline.components.items()
        return {
            name: sum(weight.numel() for weight in part.parameters())
            for name, part in parts
            if isinstance(part, torch.nn.Module)
        }


@contextmanager
def random_model(
    name: str, sizes: Sizes, folder: Path, options: GeneratorOptions, dtype: torch.dtype
) -> Iterator[RandomModel]:
    """Make a model on its device; within the block, GEMS draws with it.

    Args:
        name: The model, of ``SIZES``.
        sizes: Its shapes.
        folder: A new folder for its small files.
        options: The device, and the size and steps of images.
        dtype: The number type of the weights.
    """
    device = options.device or "cpu"
    build = {"flux2-klein-4b": _flux2_klein, "z-image-turbo": _z_image}[name]
    gc.collect()  # what earlier models have left
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            pipeline = build(sizes)
    finally:
        torch.set_default_dtype(before)
    _fill(pipeline)
    _write_small_files(pipeline, folder)
    model = RandomModel(name, folder, pipeline, options)
    with patch.object(loading, "_unplaced", lambda *_: pipeline):
        yield model
    replicas._shared_replicas.cache_clear()


def _fill(pipeline: Any) -> None:
    """Give the transformers random weights, also where they are not initialised; autoencoders keep their own."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
            part.requires_grad_(False)
    for part in (pipeline.transformer, pipeline.text_encoder):
        for weight in part.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=_DEVIATION)


def _write_small_files(pipeline: Any, folder: Path) -> None:
    pipeline.save_config(folder)
    for part in ("scheduler", "transformer", "vae"):
        getattr(pipeline, part).save_config(folder / part)
    pipeline.text_encoder.config.save_pretrained(folder / "text_encoder")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")


def _tokenizer() -> Qwen2TokenizerFast:
    """One token for each byte, and Qwen's chat template."""
    alphabet = [*_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=bytewise,
        pad_token=_TOKENS[0],
        eos_token=_TOKENS[2],
        additional_special_tokens=list(_TOKENS[1:]),
        model_max_length=4096,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _autoencoder(kind: Any, sizes: Sizes, **changes: Any) -> Any:
    blocks = len(sizes.channels)
    return kind(
        block_out_channels=sizes.channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=2,
        latent_channels=sizes.latents,
        norm_num_groups=min(32, sizes.channels[0]),
        **changes,
    )


def _z_image(sizes: Sizes) -> Any:
    head, [layers] = sizes.width // sizes.heads, sizes.layers
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(
            diffusers.AutoencoderKL,
            sizes,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1159,
            scaling_factor=0.3611,
        ),
        text_encoder=Qwen3Model(Qwen3Config(**sizes.text, tie_word_embeddings=True)),
        tokenizer=_tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=sizes.latents,
            dim=sizes.width,
            n_layers=layers,
            n_heads=sizes.heads,
            n_kv_heads=sizes.heads,
            cap_feat_dim=sizes.text["hidden_size"],
            axes_dims=[head - 2 * (3 * head // 8), 3 * head // 8, 3 * head // 8],
            axes_lens=[1536, 512, 512],
        ),
    )


def _flux2_klein(sizes: Sizes) -> Any:
    head, [double, single] = sizes.width // sizes.heads, sizes.layers
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=_autoencoder(diffusers.AutoencoderKLFlux2, sizes),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**sizes.text, tie_word_embeddings=True)),
        tokenizer=_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=4 * sizes.latents,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=head,
            num_attention_heads=sizes.heads,
            joint_attention_dim=3 * sizes.text["hidden_size"],
            axes_dims_rope=(head // 4,) * 4,
            guidance_embeds=False,
        ),
        is_distilled=True,
    )
