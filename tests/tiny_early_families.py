"""Tiny pipelines of the first text-to-image families, and of the variants of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated.alt_diffusion import modeling_roberta_series as roberta
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import LearnedClassifierFreeSamplingEmbeddings
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from tiny_pipelines import clip_model, clip_tokenizer, sd_parts, t5_tokenizer, tiny_vae
from tiny_staged_families import roberta_settings, roberta_tokenizer

__all__ = ["EARLY"]

_WIDTH: Final = 16
"""Width of the embeddings of texts."""
_CODES: Final = 12
"""Entries of the codebooks that images are put together from."""


# --- variants of Stable Diffusion ------------------------------------------------------------------------------------


def _alt_diffusion() -> dict[str, Any]:
    config = roberta.RobertaSeriesConfig(**roberta_settings(), project_dim=_WIDTH)
    return sd_parts() | {
        "text_encoder": roberta.RobertaSeriesModelWithTransformation(config),
        "tokenizer": roberta_tokenizer(),
    }


def _ldm3d() -> dict[str, Any]:
    vae = tiny_vae(4, in_channels=6, out_channels=6, shift_factor=None, use_quant_conv=True, use_post_quant_conv=True)
    return sd_parts() | {"vae": vae, "image_encoder": None}


def _paradigms() -> dict[str, Any]:
    scheduler = diffusers.DDIMParallelScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    return sd_parts() | {"scheduler": scheduler}


def _versatile_diffusion() -> dict[str, Any]:
    blocks = {
        "block_out_channels": (16, 32),
        "attention_head_dim": 4,
        "cross_attention_dim": _WIDTH,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": 16,
    }
    text_unet = UNetFlatConditionModel(
        **blocks,
        in_channels=_WIDTH,
        out_channels=_WIDTH,
        down_block_types=("DownBlockFlat", "CrossAttnDownBlockFlat"),
        up_block_types=("CrossAttnUpBlockFlat", "UpBlockFlat"),
    )
    image_unet = diffusers.UNet2DConditionModel(
        **blocks,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    parts = sd_parts()
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(transformers.CLIPTextModelWithProjection, _WIDTH),
        "image_unet": image_unet,
        "text_unet": text_unet,
        "vae": parts["vae"],
        "scheduler": parts["scheduler"],
    }


def _latent_diffusion() -> dict[str, Any]:
    config = LDMBertConfig(
        vocab_size=300, d_model=_WIDTH, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, head_dim=8
    )
    vae = tiny_vae(
        4,
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        shift_factor=None,
        use_quant_conv=True,
        use_post_quant_conv=True,
    )
    parts = sd_parts()
    return {
        "vqvae": vae,
        "bert": LDMBertModel(config),
        "tokenizer": t5_tokenizer(),
        "unet": parts["unet"],
        "scheduler": parts["scheduler"],
    }


# --- images put together from a codebook -----------------------------------------------------------------------------


def _codebook(**changes: Any) -> Any:
    settings = {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "latent_channels": 4,
        "num_vq_embeddings": _CODES,
    }
    model = diffusers.VQModel(**settings | changes)
    torch.nn.init.normal_(model.quantize.embedding.weight)  # they begin so near to each other that images are flat
    return model


def _vq_diffusion() -> dict[str, Any]:
    embeddings = LearnedClassifierFreeSamplingEmbeddings(learnable=True, hidden_size=_WIDTH, length=77)
    return {
        "vqvae": _codebook(vq_embed_dim=4),
        "text_encoder": clip_model(width=_WIDTH),
        "tokenizer": clip_tokenizer(),
        "transformer": diffusers.Transformer2DModel(
            attention_bias=True,
            cross_attention_dim=_WIDTH,
            attention_head_dim=8,
            num_attention_heads=2,
            num_vector_embeds=_CODES + 1,
            num_embeds_ada_norm=100,
            norm_type="ada_norm",
            sample_size=16,
            activation_fn="geglu-approximate",
        ),
        "scheduler": diffusers.VQDiffusionScheduler(num_vec_classes=_CODES + 1, num_train_timesteps=100),
        "learned_classifier_free_sampling_embeddings": embeddings,
    }


def _amused() -> dict[str, Any]:
    return {
        "vqvae": _codebook(
            block_out_channels=[32],
            down_block_types=["DownEncoderBlock2D"],
            up_block_types=["UpDecoderBlock2D"],
            layers_per_block=2,
            latent_channels=32,
            vq_embed_dim=32,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        ),
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(transformers.CLIPTextModelWithProjection, _WIDTH),
        "transformer": diffusers.UVit2DModel(
            hidden_size=_WIDTH,
            cond_embed_dim=_WIDTH,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=_WIDTH,
            vocab_size=_CODES + 4,
            codebook_size=_CODES,
            in_channels=16,
            block_out_channels=16,
            num_res_blocks=1,
            downsample=True,
            upsample=True,
            block_num_heads=1,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=16,
        ),
        "scheduler": diffusers.AmusedScheduler(mask_token_id=_CODES + 3),
    }


EARLY: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "AltDiffusionPipeline": _alt_diffusion,
    "AmusedPipeline": _amused,
    "LDMTextToImagePipeline": _latent_diffusion,
    "SemanticStableDiffusionPipeline": sd_parts,
    "StableDiffusionLDM3DPipeline": _ldm3d,
    "StableDiffusionParadigmsPipeline": _paradigms,
    "StableDiffusionPipelineSafe": sd_parts,
    "VQDiffusionPipeline": _vq_diffusion,
    "VersatileDiffusionTextToImagePipeline": _versatile_diffusion,
}
"""The parts of each class, by name."""
