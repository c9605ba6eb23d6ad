"""Tiny vision chat models of the Qwen3-VL class that are built and run within a second, without a network.

Their weights are random, or set so that the model always gives one fixed answer. The saved files are those of a real
repository, including a video processor whose package is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKUP: Final = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Each is one token that is part of the text, as in Qwen's vocabulary."""

SPARE_ROWS: Final = 5
"""Unused rows of the embedding. Real models have hundreds."""

PATCH: Final = 4
"""Pixels per side of a patch; four patches make one token."""


def save_tiny_chat(folder: Path, says: Sequence[str] = (), *, thinks: bool = False) -> Path:
    """Build a tiny model and save it.

    Args:
        folder: The folder to save to.
        says: The pieces of the fixed answer, all different. A piece of several characters is one token; a single
            character is one token per byte. If empty, the weights are random.
        thinks: Whether the template starts each answer with ``<think>``, as those of reasoning models do.
    """
    torch.manual_seed(0)
    tokenizer = _tokenizer(says)
    tokenizer.chat_template = TEMPLATE + (OPEN_THOUGHT if thinks else "")
    model = Qwen3VLForConditionalGeneration(
        _config(tokenizer, width=len(tokenizer) + SPARE_ROWS if says else 16)
    ).eval()
    if says:
        _teach(
            model, tokenizer.convert_tokens_to_ids(["Ċ", *(t for piece in says for t in _tokens(piece)), "<|im_end|>"])
        )
    # Like real models, sample by default. A greedy call must override this without a warning.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    image_processor.save_pretrained(folder)
    edit_json(
        folder / "preprocessor_config.json",
        image_processor_type="Qwen2VLImageProcessorFast",
        processor_class="Qwen3VLProcessor",
    )
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor"})
    )
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change settings in a JSON file; None removes a setting."""
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def _tokens(piece: str) -> list[str]:
    return (
        [piece]
        if len(piece) > 1
        else list(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(piece)[0][0])
    )


def _tokenizer(pieces: Sequence[str]) -> Qwen2TokenizerFast:
    """Each byte and each piece is a token, so any text can be encoded without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *alphabet])}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=tokens,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL[1:]),
    )
    added_tokens = dict.fromkeys([*MARKUP, *(piece for piece in pieces if len(piece) > 1)])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added_tokens])
    return tokenizer


def _config(tokenizer: Qwen2TokenizerFast, width: int) -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + SPARE_ROWS,
            "hidden_size": width,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 8192,
            "initializer_range": 0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": PATCH,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.5,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )


@torch.no_grad()
def _teach(model: Qwen3VLForConditionalGeneration, chain: Sequence[int]) -> None:
    """Make each token predict the next one of the chain: the layers add nothing, the head is a lookup table."""
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    torch.nn.init.eye_(model.model.language_model.embed_tokens.weight)
    model.lm_head.weight.zero_()
    for token, following in pairwise(chain):
        model.lm_head.weight[following, token] = 1.0


TEMPLATE: Final = r"""
{%- macro shown(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for block in content -%}
{%- if block.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ block.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
<|im_start|>system
Tools, one a line:
{% for tool in tools -%}{{ tool | tojson + '\n' }}{%- endfor -%}
Call one with its name and arguments between <tool_call> and </tool_call>.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}
{% if message.role == 'tool' -%}
<tool_response>{{ shown(message.content) }}</tool_response>
{%- else -%}
{{ shown(message.content) }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

OPEN_THOUGHT: Final = "{%- if add_generation_prompt -%}<think>\n{% endif -%}"
