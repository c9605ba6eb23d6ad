"""Tiny pipelines with random weights of the families of diffusers, beyond those of ``tiny_pipelines``.

The settings follow diffusers' own tests, made smaller. Each is built in well under a second, without a network.
"""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import diffusers
import tiny_pipelines
import torch
import transformers
from tiny_early_families import EARLY
from tiny_pipelines import (
    byte_level,
    clip_model,
    clip_tokenizer,
    flux_parts,
    qwen_image_parts,
    save_parts,
    sd3_parts,
    sdxl_parts,
    t5_model,
    t5_tokenizer,
    tiny_vae,
    z_image_parts,
)
from tiny_staged_families import STAGED
from tokenizers import processors

from gems.models.diffusers.moved_parts import restore_parts
from gems.models.diffusers.omnigen import complete_omnigen
from gems.models.processors import replaced_processors

__all__ = ["TINY_CLASSES", "save_family"]

_EULER: Final = diffusers.FlowMatchEulerDiscreteScheduler
_VISION_TOKENS: Final = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_TOKENS: Final = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_VISION_TOKENS]
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<|image_pad|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


_MOVED: Final = (
    "alt_diffusion",
    "stable_diffusion_safe",
    "unclip",
    "versatile_diffusion",
    "vq_diffusion",
    "wuerstchen",
)
"""Pipelines whose parts diffusers itself no longer saves under the names that repositories have."""


def save_family(name: str, folder: Path) -> Path:
    """Build the tiny pipeline of this class and save it."""
    if name not in _PARTS:
        return tiny_pipelines.save_tiny(name, folder)
    torch.manual_seed(0)
    complete_omnigen()
    restore_parts((module, "") for module in _MOVED)
    with replaced_processors(_PROCESSORS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # tiny models have parts without weights
        return save_parts(name, _PARTS[name](), folder)


# --- text ------------------------------------------------------------------------------------------------------------

_PROCESSORS: Final = ("Qwen2VLProcessor", "Qwen3VLProcessor", "PixtralProcessor")


def _tokenizer(*more_tokens: str) -> Any:
    tokens = [*_TOKENS, *more_tokens]
    tokenizer = transformers.Qwen2TokenizerFast(
        tokenizer_object=byte_level(tokens),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=tokens[1:],
        model_max_length=512,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _prefixed_tokenizer() -> Any:
    """A tokenizer that gives a token even for an empty text."""
    tokenizer = _tokenizer()
    template = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


_PIXELS: Final[dict[str, dict[str, int]]] = {
    "Qwen2VLProcessor": {"min_pixels": 28 * 28, "max_pixels": 56 * 56},
    "Qwen3VLProcessor": {"min_pixels": 32 * 32, "max_pixels": 1024 * 1024, "patch_size": 16},
}
"""By class of the processor: the largest pictures that the vision encoder sees, and its patches."""


def _processor(kind: str) -> Any:
    images = transformers.Qwen2VLImageProcessorPil(**_PIXELS[kind])
    tokenizer = _tokenizer()
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    return getattr(transformers, kind)(image_processor=images, tokenizer=tokenizer, chat_template=_CHAT_TEMPLATE)


def _language(width: int = 16, layers: int = 2) -> dict[str, Any]:
    return {
        "vocab_size": 280,
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
    }


def _qwen3(kind: str = "Qwen3Model", width: int = 16, layers: int = 2) -> Any:
    return getattr(transformers, kind)(transformers.Qwen3Config(**_language(width, layers)))


def _qwen25_vl(width: int = 16) -> Any:
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    language = _language(width) | {"num_attention_heads": width // 8, "num_key_value_heads": width // 8}
    config = transformers.Qwen2_5_VLConfig(
        text_config=language | {"rope_scaling": rope, "rope_theta": 1e6},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
        },
        **_token_ids(),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _token_ids() -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return {name: _TOKENS.index(token) for name, token in zip(names, _VISION_TOKENS, strict=True)}


def _qwen3_vl(kind: str = "Qwen3VLForConditionalGeneration", layers: int = 2) -> Any:
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    config = transformers.Qwen3VLConfig(
        text_config=_language(layers=layers) | {"rope_scaling": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "patch_size": 16,
            "deepstack_visual_indexes": [0],
        },
        **_token_ids(),
    )
    return getattr(transformers, kind)(config)


def _gemma2(width: int = 8) -> Any:
    config = transformers.Gemma2Config(
        vocab_size=300,
        head_dim=4,
        hidden_size=width,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=2,
        sliding_window=64,
    )
    return transformers.Gemma2Model(config)


def _mistral3(kind: str) -> Any:
    text = _language() | {"model_type": "mistral", "sliding_window": None}
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=5)
    return getattr(transformers, kind)(config)


# --- autoencoders ----------------------------------------------------------------------------------------------------


def _flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def _classic_vae() -> Any:
    return tiny_vae(
        4, shift_factor=None, scaling_factor=0.18215, use_quant_conv=True, use_post_quant_conv=True, force_upcast=False
    )


def _deep_vae(**changes: Any) -> Any:
    """Eight pixels for each position of the latents, which some pipelines take for granted."""
    return tiny_vae(
        4,
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        force_upcast=False,
        **changes,
    )


def _dc_vae() -> Any:
    blocks = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=[1] * 4,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


# --- families: Flux and what follows it ------------------------------------------------------------------------------


def _flux2_transformer(guidance: bool, width: int) -> Any:
    return diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=guidance,
    )


def _flux2() -> dict[str, Any]:
    tokenizer = _tokenizer()
    processor = transformers.PixtralProcessor(tokenizer=tokenizer, chat_template=_CHAT_TEMPLATE)
    return {
        "scheduler": _EULER(),
        "vae": _flux2_vae(),
        "text_encoder": _mistral3_deep("Mistral3ForConditionalGeneration"),
        "tokenizer": processor,
        "transformer": _flux2_transformer(True, 48),
    }


def _mistral3_deep(kind: str) -> Any:
    """The pipeline reads layers 10, 20 and 30."""
    model = _mistral3(kind)
    config = model.config
    config.text_config.num_hidden_layers = 30
    config.text_config.layer_types = None
    return getattr(transformers, kind)(config)


def _flux2_klein() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": _flux2_vae(),
        "text_encoder": _qwen3("Qwen3ForCausalLM", layers=27),
        "tokenizer": _tokenizer(),
        "transformer": _flux2_transformer(False, 48),
    }


def _chroma() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": tiny_vae(4),
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_model(32),
        "transformer": diffusers.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[4, 4, 8],
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        "image_encoder": None,
        "feature_extractor": None,
    }


def _ovis() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": tiny_vae(4),
        "tokenizer": _tokenizer(),
        "text_encoder": _qwen3(),
        "transformer": diffusers.OvisImageTransformer2DModel(
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
    }


def _bria() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": tiny_vae(4, shift_factor=0, scaling_factor=0.13025, force_upcast=False),
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_model(32),
        "transformer": diffusers.BriaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        "image_encoder": None,
        "feature_extractor": None,
    }


def _bria_fibo() -> dict[str, Any]:
    config = transformers.SmolLM3Config(**_language() | {"vocab_size": 128_256}, pad_token_id=0)
    return {
        "scheduler": _EULER(),
        "vae": diffusers.AutoencoderKLWan(
            base_dim=8,
            decoder_base_dim=8,
            num_res_blocks=1,
            out_channels=12,
            in_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            scale_factor_temporal=4,
            temperal_downsample=[False, True, True],
            z_dim=4,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "tokenizer": _tokenizer(),
        "text_encoder": transformers.SmolLM3ForCausalLM(config),
        "transformer": diffusers.BriaFiboTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            text_encoder_dim=16,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
    }


def _bria_fibo2() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": _flux2_vae(),
        "text_encoder": _qwen3_vl(layers=36),
        "processor": _processor("Qwen3VLProcessor"),
        "transformer": diffusers.BriaFibo2Transformer2DModel(
            in_channels=2,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=48,
            injection_layer_ids=(0,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=4,
            gist_min_text_len=4,
            gist_max_text_len=64,
            axes_dims=(4, 6, 6),
            axes_lens=(2048, 64, 64),
        ),
    }


def _flux_kontext() -> dict[str, Any]:
    return flux_parts() | {"vae": _deep_vae()}  # it scales images that it edits to a million pixels


def _long_cat() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": tiny_vae(16),
        "tokenizer": _tokenizer(),
        "text_encoder": _qwen25_vl(),
        "text_processor": _processor("Qwen2VLProcessor"),
        "transformer": diffusers.LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 4, 8],
        ),
    }


# --- families: language models as text encoders ----------------------------------------------------------------------


def _krea2() -> dict[str, Any]:
    return {
        "scheduler": _EULER(use_dynamic_shifting=True),
        "vae": _qwen_vae(),
        "tokenizer": _tokenizer(),
        "text_encoder": _qwen3_vl("Qwen3VLModel"),
        "text_encoder_select_layers": (0, 1, 2),
        "transformer": diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
            rope_theta=1000.0,
        ),
    }


def _nucleus() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": _qwen_vae(),
        "text_encoder": _qwen3_vl(layers=8),
        "processor": _processor("Qwen3VLProcessor"),
        "transformer": diffusers.NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            moe_enabled=False,
            capacity_factors=[8.0],
        ),
    }


def _dream_lite() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=4,
        ),
        "tokenizer": _tokenizer(),
        "processor": _processor("Qwen3VLProcessor"),
        "text_encoder": _qwen3_vl(),
        "unet": diffusers.DreamLiteUNetModel(
            sample_size=8,
            down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            block_out_channels=(8, 16),
            cross_attention_dim=16,
            attention_head_dim=8,
            layers_per_block=1,
            norm_num_groups=4,
            transformer_layers_per_block=1,
        ),
    }


def _kandinsky5() -> dict[str, Any]:
    return {
        "scheduler": _EULER(shift=7.0),
        "vae": tiny_vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        "tokenizer": _processor("Qwen2VLProcessor"),
        "text_encoder": _qwen25_vl(),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_2": clip_model(),
        "transformer": diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=16,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(1, 1, 2),
            visual_cond=False,
            attention_type="regular",
        ),
    }


def _ernie() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": _flux2_vae(),
        "tokenizer": _tokenizer(),
        "text_encoder": _mistral3("Mistral3Model"),
        "pe": _qwen3("Qwen3ForCausalLM"),
        "pe_tokenizer": _tokenizer(),
        "transformer": diffusers.ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=1,
            ffn_hidden_size=32,
            in_channels=8,
            out_channels=8,
            text_in_dim=16,
            rope_axes_dim=(4, 6, 6),
        ),
    }


def _ideogram4() -> dict[str, Any]:
    def transformer() -> Any:
        return diffusers.Ideogram4Transformer2DModel(
            in_channels=8,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=16 * 13,
            mrope_section=(4, 2, 2),
        )

    return {
        "scheduler": _EULER(),
        "vae": _flux2_vae(),
        "tokenizer": _tokenizer(),
        "text_encoder": _qwen3_vl("Qwen3VLModel", layers=36),
        "transformer": transformer(),
        "unconditional_transformer": transformer(),
    }


def _qwen_image_21() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": diffusers.AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=4,
            num_res_blocks=1,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "text_encoder": _qwen3_vl(),
        "processor": _processor("Qwen3VLProcessor"),
        "transformer": diffusers.QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    }


def _qwen_image_edit() -> dict[str, Any]:
    return qwen_image_parts() | {
        "tokenizer": _tokenizer(),
        "text_encoder": _qwen25_vl(),
        "processor": _processor("Qwen2VLProcessor"),
    }


def _byte_t5(width: int) -> Any:
    config = transformers.T5Config(
        vocab_size=400, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, relative_attention_num_buckets=8
    )
    return transformers.T5EncoderModel(config)


def _hunyuan_image() -> dict[str, Any]:
    guider = diffusers.AdaptiveProjectedMixGuidance
    return {
        "scheduler": _EULER(shift=7.0),
        "vae": diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32),
            layers_per_block=1,
            scaling_factor=0.476986,
            spatial_compression_ratio=4,
            sample_size=32,
        ),
        "tokenizer": _tokenizer(),
        "text_encoder": _qwen25_vl(32),
        "tokenizer_2": transformers.ByT5Tokenizer(),
        "text_encoder_2": _byte_t5(32),
        "transformer": diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            guidance_embeds=False,
            text_embed_dim=32,
            text_embed_2_dim=32,
            rope_axes_dim=(4, 4),
        ),
        "guider": guider(adaptive_projected_guidance_start_step=2),
        "ocr_guider": guider(adaptive_projected_guidance_start_step=3),
    }


def _hi_dream() -> dict[str, Any]:
    llama = transformers.LlamaConfig(**_language(), pad_token_id=0)
    return {
        "scheduler": _EULER(),
        "vae": tiny_vae(4),
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(transformers.CLIPTextModelWithProjection, 32, 128),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_2": clip_model(transformers.CLIPTextModelWithProjection, 32, 128),
        "tokenizer_3": t5_tokenizer(),
        "text_encoder_3": t5_model(32),
        "tokenizer_4": _tokenizer(),
        "text_encoder_4": transformers.LlamaForCausalLM(llama),
        "transformer": diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[32, 16],
            text_emb_dim=64,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
    }


_GLM_TOKENS: Final = ("<grid>", "</grid>", "<image>", "</image>")


def _glm_image() -> dict[str, Any]:
    codes = 320
    language = _language() | {"vocab_size": codes, "vision_vocab_size": codes, "eos_token_id": None, "pad_token_id": 0}
    del language["head_dim"]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
    config = transformers.GlmImageConfig(
        text_config=language | {"rope_parameters": rope},
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "image_size": 64},
        vq_config={"embed_dim": 8, "num_embeddings": codes, "latent_channels": 16},
        image_token_id=_TOKENS.index("<|image_pad|>"),
        image_start_token_id=len(_TOKENS) + 2,
        image_end_token_id=len(_TOKENS) + 3,
    )
    tokenizer = _tokenizer(*_GLM_TOKENS)
    tokenizer.add_special_tokens({"bos_token": _GLM_TOKENS[2]})
    names = {"image_token": "<|image_pad|>", "grid_bos_token": _GLM_TOKENS[0], "grid_eos_token": _GLM_TOKENS[1]}
    tokenizer._set_model_specific_special_tokens(names)
    processor = transformers.GlmImageProcessor(
        image_processor=transformers.GlmImageImageProcessorPil(), tokenizer=tokenizer, chat_template=_CHAT_TEMPLATE
    )
    return {
        "scheduler": _EULER(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
        "vae": _deep_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        "tokenizer": transformers.ByT5Tokenizer(),
        "text_encoder": _byte_t5(16),
        "processor": processor,
        "vision_language_encoder": transformers.GlmImageForConditionalGeneration(config),
        "transformer": diffusers.GlmImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=16,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=codes,
        ),
    }


def _z_image_omni() -> dict[str, Any]:
    parts = z_image_parts()
    vision = transformers.Siglip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4, num_patches=16
    )
    config = dict(parts["transformer"].config) | {"siglip_feat_dim": 16}
    return parts | {
        "transformer": diffusers.ZImageTransformer2DModel.from_config(config),
        "siglip": transformers.Siglip2VisionModel(vision),
        "siglip_processor": transformers.Siglip2ImageProcessorPil(),
    }


def _omni_gen() -> dict[str, Any]:
    return {
        "scheduler": _EULER(invert_sigmas=True, num_train_timesteps=1),
        "vae": _deep_vae(),
        "tokenizer": _tokenizer(),
        "transformer": diffusers.OmniGenTransformer2DModel(
            hidden_size=16,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=32,
            num_layers=1,
            in_channels=4,
            time_step_dim=4,
            rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
            vocab_size=300,
            pad_token_id=0,
        ),
    }


# --- families: Gemma, T5 and BERT as text encoders -------------------------------------------------------------------


def _lumina2() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": _deep_vae(),
        "tokenizer": _tokenizer(),
        "text_encoder": _gemma2(),
        "transformer": diffusers.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=8,
            num_layers=1,
            num_attention_heads=1,
            num_kv_heads=1,
            multiple_of=16,
            scaling_factor=1.0,
            axes_dim_rope=[4, 2, 2],
            cap_feat_dim=8,
        ),
    }


def _lumina() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "vae": _deep_vae(),
        "tokenizer": _prefixed_tokenizer(),
        "text_encoder": _gemma2(),
        "transformer": diffusers.LuminaNextDiT2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=8,
            num_layers=1,
            num_attention_heads=1,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=8,
        ),
    }


def _chat_glm() -> tuple[Any, Any]:
    """The tokenizer and the encoder of Kolors, which diffusers has only where sentencepiece is installed."""
    import sentencepiece
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)  # it is read again when the tokenizer is saved
    letters = [" ".join(chr(code) * 2 for code in range(97, 123))] * 10
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(letters), model_prefix=f"{folder.name}/tokenizer", vocab_size=40, model_type="char",
        pad_id=3, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=64,
        hidden_size=16,
        ffn_hidden_size=16,
        kv_channels=8,
        num_attention_heads=2,
        add_qkv_bias=True,
        multi_query_attention=True,
        original_rope=True,
    )
    encoder = ChatGLMModel(config)
    for weight in encoder.parameters():  # it leaves them as it found the memory
        torch.nn.init.normal_(weight, std=0.1) if weight.ndim > 1 else torch.nn.init.ones_(weight)
    return ChatGLMTokenizer(f"{folder.name}/tokenizer.model"), encoder


def _kolors() -> dict[str, Any]:
    tokenizer, encoder = _chat_glm()
    parts = sdxl_parts()
    config = dict(parts["unet"].config) | {
        "_use_default_values": [],
        "encoder_hid_dim": 16,
        "encoder_hid_dim_type": "text_proj",
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    }
    return {
        "scheduler": parts["scheduler"],
        "vae": parts["vae"],
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "unet": diffusers.UNet2DConditionModel.from_config(config),
    }


def _prx_transformer(channels: int, patch: int) -> Any:
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=channels, patch_size=patch, context_in_dim=8, hidden_size=16, num_heads=2, depth=1, axes_dim=[4, 4]
    )
    torch.nn.init.normal_(transformer.blocks[0].modulation.lin.weight)  # it begins with zeros: no prompt shows then
    return transformer


def _prx() -> dict[str, Any]:
    module = {
        "vocab_size": 300,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    config = transformers.T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False, vocab_size=300)
    encoder = transformers.models.t5gemma.modeling_t5gemma.T5GemmaEncoder(config.encoder)
    encoder.config = config  # diffusers loads the encoder from a configuration of both halves
    return {
        "scheduler": _EULER(),
        "vae": _deep_vae(),
        "tokenizer": _prefixed_tokenizer(),
        "text_encoder": encoder,
        "transformer": _prx_transformer(4, 2),
        "default_sample_size": 256,
    }


def _prx_pixel() -> dict[str, Any]:
    return {
        "scheduler": _EULER(),
        "tokenizer": _prefixed_tokenizer(),
        "text_encoder": _gemma2(),
        "transformer": _prx_transformer(3, 16),
        "default_sample_size": 1024,
    }


def _sana(sample_size: int = 16, **changes: Any) -> dict[str, Any]:
    return {
        "scheduler": _EULER(shift=7.0),
        "vae": _dc_vae(),
        "tokenizer": _tokenizer(),
        "text_encoder": _gemma2(),
        "transformer": diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=sample_size,
            **changes,
        ),
    }


def _sana_sprint() -> dict[str, Any]:
    parts = _sana(32, qk_norm="rms_norm_across_heads", guidance_embeds=True)
    return parts | {"scheduler": diffusers.SCMScheduler()}


def _pix_art() -> dict[str, Any]:
    return {
        "scheduler": diffusers.DDIMScheduler(),
        "vae": _deep_vae(),
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_model(32),
        "transformer": diffusers.PixArtTransformer2DModel(
            sample_size=32,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
        ),
    }


def _aura_flow() -> dict[str, Any]:
    config = transformers.UMT5Config(
        vocab_size=300, d_model=32, d_ff=16, d_kv=8, num_layers=1, num_heads=2, relative_attention_num_buckets=8
    )
    return {
        "scheduler": _EULER(),
        "vae": _classic_vae(),
        "tokenizer": t5_tokenizer(),
        "text_encoder": transformers.UMT5EncoderModel(config),
        "transformer": diffusers.AuraFlowTransformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            out_channels=4,
            pos_embed_max_size=256,
        ),
    }


def _hunyuan_dit() -> dict[str, Any]:
    bert = transformers.BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
    )
    return {
        "scheduler": diffusers.DDPMScheduler(),
        "vae": _deep_vae(),
        "tokenizer": t5_tokenizer(),
        "text_encoder": transformers.BertModel(bert),
        "tokenizer_2": t5_tokenizer(),
        "text_encoder_2": t5_model(32),
        "transformer": diffusers.HunyuanDiT2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            hidden_size=24,
            activation_fn="gelu-approximate",
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }


def _cog_view_4() -> dict[str, Any]:
    config = transformers.GlmConfig(**_language() | {"hidden_size": 32}, pad_token_id=0)
    return {
        "scheduler": _EULER(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
        "vae": _classic_vae(),
        "tokenizer": _prefixed_tokenizer(),
        "text_encoder": transformers.GlmForCausalLM(config),
        "transformer": diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=4,
            out_channels=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=4,
        ),
    }


def _cog_view_3() -> dict[str, Any]:
    return {
        "scheduler": diffusers.CogVideoXDDIMScheduler(),
        "vae": _classic_vae(),
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_model(32),
        "transformer": diffusers.CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=16,
            sample_size=8,
        ),
    }


def _kandinsky3() -> dict[str, Any]:
    return {
        "scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_model(32),
        "unet": diffusers.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=32,
        ),
        "movq": diffusers.VQModel(
            block_out_channels=[32, 64],
            down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
            latent_channels=4,
            norm_num_groups=8,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        ),
    }


def _deep_floyd() -> dict[str, Any]:
    return {
        "scheduler": diffusers.DDPMScheduler(thresholding=True, variance_type="learned_range"),
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_model(32),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=32,
            layers_per_block=1,
            block_out_channels=[32, 64],
            down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
            in_channels=3,
            out_channels=6,
            cross_attention_dim=32,
            encoder_hid_dim=32,
            attention_head_dim=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
    }


def _stable_diffusion(**changes: Any) -> dict[str, Any]:
    return {
        "scheduler": diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        "vae": _classic_vae(),
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(),
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
            **changes,
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }


def _sd3_pag() -> dict[str, Any]:
    parts = sd3_parts()
    config = dict(parts["transformer"].config) | {"num_layers": 2}
    return parts | {"transformer": diffusers.SD3Transformer2DModel.from_config(config)}


def _latent_consistency() -> dict[str, Any]:
    scheduler = diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return _stable_diffusion(time_cond_proj_dim=32) | {"scheduler": scheduler}


_PARTS: Final[dict[str, Callable[[], dict[str, Any]]]] = (
    {
        "AuraFlowPipeline": _aura_flow,
        "BriaFibo2Pipeline": _bria_fibo2,
        "BriaFiboPipeline": _bria_fibo,
        "BriaPipeline": _bria,
        "ChromaPipeline": _chroma,
        "CogView3PlusPipeline": _cog_view_3,
        "CogView4Pipeline": _cog_view_4,
        "DreamLiteMobilePipeline": _dream_lite,
        "DreamLitePipeline": _dream_lite,
        "ErnieImagePipeline": _ernie,
        "Flux2KleinKVPipeline": _flux2_klein,
        "Flux2KleinPipeline": _flux2_klein,
        "Flux2Pipeline": _flux2,
        "FluxKontextPipeline": _flux_kontext,
        "GlmImagePipeline": _glm_image,
        "HiDreamImagePipeline": _hi_dream,
        "HunyuanDiTPAGPipeline": _hunyuan_dit,
        "HunyuanDiTPipeline": _hunyuan_dit,
        "HunyuanImagePipeline": _hunyuan_image,
        "IFPipeline": _deep_floyd,
        "Ideogram4Pipeline": _ideogram4,
        "Kandinsky3Pipeline": _kandinsky3,
        "Kandinsky5T2IPipeline": _kandinsky5,
        "KolorsPAGPipeline": _kolors,
        "KolorsPipeline": _kolors,
        "Krea2Pipeline": _krea2,
        "LatentConsistencyModelPipeline": _latent_consistency,
        "LongCatImagePipeline": _long_cat,
        "Lumina2Pipeline": _lumina2,
        "LuminaPipeline": _lumina,
        "NucleusMoEImagePipeline": _nucleus,
        "OmniGenPipeline": _omni_gen,
        "OvisImagePipeline": _ovis,
        "PRXPipeline": _prx,
        "PRXPixelPipeline": _prx_pixel,
        "PixArtAlphaPipeline": _pix_art,
        "PixArtSigmaPAGPipeline": _pix_art,
        "PixArtSigmaPipeline": _pix_art,
        "QwenImage21Pipeline": _qwen_image_21,
        "QwenImageEditPipeline": _qwen_image_edit,
        "QwenImageEditPlusPipeline": _qwen_image_edit,
        "SanaPAGPipeline": _sana,
        "SanaPipeline": _sana,
        "SanaSprintPipeline": _sana_sprint,
        "StableDiffusion3PAGPipeline": _sd3_pag,
        "StableDiffusionPAGPipeline": _stable_diffusion,
        "StableDiffusionPanoramaPipeline": _stable_diffusion,
        "StableDiffusionPipeline": _stable_diffusion,
        "StableDiffusionSAGPipeline": _stable_diffusion,
        "StableDiffusionXLPAGPipeline": sdxl_parts,
        "ZImageOmniPipeline": _z_image_omni,
    }
    | EARLY
    | STAGED
)

TINY_CLASSES: Final = sorted({*_PARTS, *tiny_pipelines.CLASSES})
"""The names of all classes that can be built."""
