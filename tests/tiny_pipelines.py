"""Tiny diffusers pipelines with random weights that are built and run within a second, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

SIZE: Final = 32
"""Width and height of the requested images, in pixels."""


def save_tiny(kind: str, folder: Path, **changes: Any) -> Path:
    """Build the tiny pipeline of this class, replace the given components, and save it."""
    torch.manual_seed(0)
    return save_parts(kind, _PARTS[kind]() | changes, folder)


def save_parts(kind: str, parts: dict[str, Any], folder: Path) -> Path:
    """Build the pipeline of this class from its parts, and save it."""
    pipeline = getattr(diffusers, kind)(**parts)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.save_pretrained(folder)
    return folder


# --- tokenizers ------------------------------------------------------------------------------------------------------


def byte_level(tokens: list[str]) -> Tokenizer:
    """The special tokens, then one token per byte, so any text can be encoded without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*tokens, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


_QWEN_TOKENS: Final = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _qwen_tokenizer() -> Qwen2TokenizerFast:
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=byte_level(_QWEN_TOKENS),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=_QWEN_TOKENS[1:],
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def clip_tokenizer() -> CLIPTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + "</w>" for letter in alphabet)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<pad>", "</s>"]), pad_token="<pad>", eos_token="</s>", model_max_length=77
    )


# --- parts -----------------------------------------------------------------------------------------------------------


def tiny_vae(channels: int, **changes: Any) -> diffusers.AutoencoderKL:
    settings = {
        "block_out_channels": (8, 16),
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.0609,
        "scaling_factor": 1.5035,
    }
    return diffusers.AutoencoderKL(**settings | changes)


def clip_model(kind: type = CLIPTextModel, width: int = 16, length: int = 77) -> Any:
    tokenizer = clip_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=width,
            max_position_embeddings=length,
        )
    )


def t5_model(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=300, d_model=width, d_ff=16, d_kv=8, num_layers=1, num_heads=2, relative_attention_num_buckets=8
        )
    )


def z_image_parts() -> dict[str, Any]:
    tokenizer = _qwen_tokenizer()
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": tiny_vae(4),
        "tokenizer": tokenizer,
        "text_encoder": Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=512,
            )
        ),
        "transformer": diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 64, 64],
        ),
    }


def qwen_image_parts() -> dict[str, Any]:
    tokenizer = _qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1e6,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    )
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "tokenizer": tokenizer,
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        "transformer": diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
    }


def flux_parts() -> dict[str, Any]:
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": tiny_vae(4),
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(),
        "tokenizer_2": t5_tokenizer(),
        "text_encoder_2": t5_model(16),
        "transformer": diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=True,
        ),
    }


def sd3_parts() -> dict[str, Any]:
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": tiny_vae(4),
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(CLIPTextModelWithProjection),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_2": clip_model(CLIPTextModelWithProjection),
        "tokenizer_3": t5_tokenizer(),
        "text_encoder_3": t5_model(32),
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=SIZE,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            out_channels=4,
        ),
    }


def sdxl_parts() -> dict[str, Any]:
    return {
        "scheduler": diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, timestep_spacing="leading"),
        "vae": tiny_vae(4, shift_factor=None, use_quant_conv=True, use_post_quant_conv=True, force_upcast=False),
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_2": clip_model(CLIPTextModelWithProjection),
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            sample_size=SIZE // 2,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=64,
            cross_attention_dim=32,
            norm_num_groups=4,
        ),
    }


def sd_parts() -> dict[str, Any]:
    return {
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
        ),
        "vae": tiny_vae(4, shift_factor=None, use_quant_conv=True, use_post_quant_conv=True),
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_model(),
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            sample_size=SIZE // 2,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=16,
            norm_num_groups=4,
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


_PARTS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "ZImagePipeline": z_image_parts,
    "QwenImagePipeline": qwen_image_parts,
    "FluxPipeline": flux_parts,
    "FluxKontextPipeline": flux_parts,
    "StableDiffusion3Pipeline": sd3_parts,
    "StableDiffusionPipeline": sd_parts,
    "StableDiffusionXLPipeline": sdxl_parts,
}


CLASSES: Final = tuple(_PARTS)
"""The names of the classes that ``save_tiny`` builds."""


def weights_of(folder: Path) -> list[Path]:
    """All weight files of a saved pipeline."""
    return sorted(folder.rglob("*.safetensors"))


def edit_index(folder: Path, **changes: Any) -> None:
    """Change entries of ``model_index.json``."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- single files ----------------------------------------------------------------------------------------------------

_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET: Final = (
    # (Names in diffusers, names in the original files), for the tiny U-Net above: one layer and two blocks.
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("conv_in", "input_blocks.0.0"),
    ("down_blocks.0.resnets.0", "input_blocks.1.0"),
    ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
    ("down_blocks.1.resnets.0", "input_blocks.3.0"),
    ("down_blocks.1.attentions.0", "input_blocks.3.1"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
    ("up_blocks.0.resnets.0", "output_blocks.0.0"),
    ("up_blocks.0.attentions.0", "output_blocks.0.1"),
    ("up_blocks.0.resnets.1", "output_blocks.1.0"),
    ("up_blocks.0.attentions.1", "output_blocks.1.1"),
    ("up_blocks.0.upsamplers.0.conv", "output_blocks.1.2.conv"),
    ("up_blocks.1.resnets.0", "output_blocks.2.0"),
    ("up_blocks.1.resnets.1", "output_blocks.3.0"),
)
_VAE: Final = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
    ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
    ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    ("down_blocks.0.downsamplers.0.conv", "down.0.downsample.conv"),
    ("up_blocks.0.upsamplers.0.conv", "up.1.upsample.conv"),
    ("down_blocks.0.resnets", "down.0.block"),
    ("down_blocks.1.resnets", "down.1.block"),
    ("up_blocks.0.resnets", "up.1.block"),
    ("up_blocks.1.resnets", "up.0.block"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
)


def save_as_checkpoint(folder: Path, file: Path) -> Path:
    """Save a tiny Stable Diffusion in one file, under the names of the original files, as they are passed around."""
    tensors = {}
    for name, tensor in _tensors(folder / "unet"):
        for own, original in _UNET:
            if name.startswith(f"{own}."):
                is_resnet = ".resnets." in name
                name = name.replace(own, original, 1)
                for layer, original_layer in _RESNET.items() if is_resnet else ():
                    name = name.replace(f".{layer}.", f".{original_layer}.")
                break
        tensors[f"model.diffusion_model.{name}"] = tensor
    for name, tensor in _tensors(folder / "vae"):
        for own, original in _VAE:
            name = name.replace(own, original)
        tensors[f"first_stage_model.{name}"] = tensor
    prefix = "cond_stage_model.transformer.text_model."
    tensors |= {prefix + name.removeprefix("text_model."): t for name, t in _tensors(folder / "text_encoder")}
    save_file(tensors, file)
    return file


def _tensors(folder: Path) -> list[tuple[str, torch.Tensor]]:
    return [item for file in folder.glob("*.safetensors") for item in load_file(file).items()]
