"""Tiny pipelines of several stages: one makes an embedding of an image, others draw it, and enlarge it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from tiny_pipelines import clip_model, clip_tokenizer, t5_tokenizer, tiny_vae
from tokenizers import processors

__all__ = ["STAGED", "roberta_settings", "roberta_tokenizer"]

_WIDTH: Final = 16
"""Width of the embeddings of texts and images."""


def roberta_tokenizer() -> Any:
    tokenizer = t5_tokenizer()
    template = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # even of an empty text
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def roberta_settings() -> dict[str, Any]:
    return {
        "vocab_size": 300,
        "hidden_size": _WIDTH,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "max_position_embeddings": 100,
        "pad_token_id": 0,
    }


def _embedding_model() -> Any:
    return clip_model(transformers.CLIPTextModelWithProjection, _WIDTH)


def _prior(**changes: Any) -> Any:
    return diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=_WIDTH,
        num_layers=1,
        **changes,
    )


# --- Kandinsky -------------------------------------------------------------------------------------------------------


def _kandinsky_prior() -> dict[str, Any]:
    vision = transformers.CLIPVisionConfig(
        hidden_size=_WIDTH,
        image_size=32,
        projection_dim=_WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        patch_size=16,
    )
    prior = _prior(additional_embeddings=4)
    prior.clip_std.data.fill_(1.0)  # otherwise all images have the same embedding
    return {
        "prior_prior": prior,
        "prior_image_encoder": transformers.CLIPVisionModelWithProjection(vision),
        "prior_text_encoder": _embedding_model(),
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            num_train_timesteps=1000,
            clip_sample=True,
            clip_sample_range=5.0,
        ),
        "prior_image_processor": transformers.CLIPImageProcessorPil(size=32, crop_size=32),
    }


def _kandinsky_unet(**changes: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=_WIDTH,
        cross_attention_dim=_WIDTH,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        **changes,
    )


def _movq() -> Any:
    return diffusers.VQModel(
        block_out_channels=[32] * 4,
        down_block_types=["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def _kandinsky() -> dict[str, Any]:
    config = MCLIPConfig(transformerDimSize=_WIDTH, imageDimSize=_WIDTH, **roberta_settings())
    return _kandinsky_prior() | {
        "text_encoder": MultilingualCLIP(config),
        "tokenizer": roberta_tokenizer(),
        "unet": _kandinsky_unet(
            encoder_hid_dim_type="text_image_proj",
            addition_embed_type="text_image",
            addition_embed_type_num_heads=2,
        ),
        "scheduler": diffusers.DDIMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, prediction_type="epsilon"
        ),
        "movq": _movq(),
    }


def _kandinsky22() -> dict[str, Any]:
    return _kandinsky_prior() | {
        "unet": _kandinsky_unet(encoder_hid_dim_type="image_proj", addition_embed_type="image"),
        "scheduler": diffusers.DDPMScheduler(variance_type="learned_range"),
        "movq": _movq(),
    }


# --- Wuerstchen and Stable Cascade -----------------------------------------------------------------------------------


def _vqgan() -> Any:
    return PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=4, embed_dim=8)


def _wuerstchen() -> dict[str, Any]:
    decoder = WuerstchenDiffNeXt(
        c_cond=_WIDTH,
        c_hidden=[16],
        nhead=[2],
        blocks=[1],
        level_config=["CTA"],
        inject_effnet=[True],
        effnet_embd=2,
        clip_embd=_WIDTH,
    )
    torch.nn.init.normal_(decoder.clf[1].weight)  # it begins with zeros, with which nothing shows in the image
    return {
        "prior_prior": WuerstchenPrior(c_in=2, c=8, depth=2, c_cond=_WIDTH, c_r=8, nhead=2),
        "prior_text_encoder": clip_model(width=_WIDTH),
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": diffusers.DDPMWuerstchenScheduler(),
        "decoder": decoder,
        "text_encoder": clip_model(width=_WIDTH),
        "tokenizer": clip_tokenizer(),
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
        "vqgan": _vqgan(),
    }


def _stable_cascade() -> dict[str, Any]:
    layers = {
        "conditioning_dim": _WIDTH,
        "block_out_channels": (8, 8),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "clip_text_pooled_in_channels": _WIDTH,
        "switch_level": (False,),
    }
    prior = diffusers.StableCascadeUNet(
        **layers, in_channels=2, out_channels=2, clip_text_in_channels=_WIDTH, clip_image_in_channels=8
    )
    decoder = diffusers.StableCascadeUNet(
        **layers, in_channels=4, out_channels=4, patch_size=1, effnet_in_channels=2, pixel_mapper_in_channels=3
    )
    return {
        "prior_prior": prior,
        "prior_text_encoder": _embedding_model(),
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": diffusers.DDPMWuerstchenScheduler(),
        "prior_feature_extractor": None,
        "prior_image_encoder": None,
        "decoder": decoder,
        "text_encoder": _embedding_model(),
        "tokenizer": clip_tokenizer(),
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
        "vqgan": _vqgan(),
    }


# --- unCLIP ----------------------------------------------------------------------------------------------------------


def _un_clip() -> dict[str, Any]:
    def enlarger() -> Any:
        return diffusers.UNet2DModel(
            sample_size=64,
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
            up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(32, 64),
            in_channels=6,
            out_channels=3,
        )

    def scheduler(**changes: Any) -> Any:
        return diffusers.UnCLIPScheduler(num_train_timesteps=1000, **changes)

    decoder = diffusers.UNet2DConditionModel(
        sample_size=32,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=_WIDTH,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    prior = _prior()
    prior.clip_std.data.fill_(1.0)
    return {
        "prior": prior,
        "decoder": decoder,
        "text_encoder": _embedding_model(),
        "tokenizer": clip_tokenizer(),
        "text_proj": UnCLIPTextProjModel(clip_embeddings_dim=_WIDTH, time_embed_dim=4 * 32, cross_attention_dim=_WIDTH),
        "super_res_first": enlarger(),
        "super_res_last": enlarger(),
        "prior_scheduler": scheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0),
        "decoder_scheduler": scheduler(variance_type="learned_range", prediction_type="epsilon"),
        "super_res_scheduler": scheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    }


def _stable_un_clip() -> dict[str, Any]:
    prior = _prior()
    prior.clip_std.data.fill_(1.0)
    return {
        "prior_tokenizer": clip_tokenizer(),
        "prior_text_encoder": _embedding_model(),
        "prior": prior,
        "prior_scheduler": diffusers.DDPMScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            num_train_timesteps=1000,
            clip_sample=True,
            clip_sample_range=5.0,
            beta_schedule="squaredcos_cap_v2",
        ),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=_WIDTH),
        "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(width=_WIDTH),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            attention_head_dim=(2, 4),
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * _WIDTH,
            cross_attention_dim=_WIDTH,
            layers_per_block=1,
            norm_num_groups=4,
            use_linear_projection=True,
        ),
        "scheduler": diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "vae": tiny_vae(4, shift_factor=None, use_quant_conv=True, use_post_quant_conv=True, force_upcast=False),
    }


STAGED: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "KandinskyCombinedPipeline": _kandinsky,
    "KandinskyV22CombinedPipeline": _kandinsky22,
    "StableCascadeCombinedPipeline": _stable_cascade,
    "StableUnCLIPPipeline": _stable_un_clip,
    "UnCLIPPipeline": _un_clip,
    "WuerstchenCombinedPipeline": _wuerstchen,
}
"""The parts of each class, by name."""
