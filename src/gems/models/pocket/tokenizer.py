"""The generator's tokenizer: one token for each word of the closed list that captions are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from gems.models.pocket.captions import WORDS
from gems.models.pocket.vocabulary import with_near_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "END",
    "MAX_TOKENS",
    "PAD",
    "UNKNOWN",
    "build_tokenizer",
    "encode",
    "fault_of",
    "unknown_words",
    "word_tokenizer",
]

PAD: Final = "[PAD]"
UNKNOWN: Final = "[UNK]"
END: Final = "[END]"
"""Ends every prompt. Alone it is the empty prompt, which classifier-free guidance steers away from."""

MAX_TOKENS: Final = 128


def word_tokenizer() -> Tokenizer:
    """A lower-casing word-level tokenizer over ``captions.WORDS``; ids 0, 1, 2 are PAD, UNKNOWN and END."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate((PAD, UNKNOWN, END, *WORDS))}, UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """``word_tokenizer`` as a tokenizer of transformers, which a pipeline of diffusers saves and loads."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(),
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def encode(tokenizer: Tokenizer, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of prompts, padded to the longest, and the mask of real tokens: 1, or 0 for padding."""
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    length, pad = max(map(len, ids)), int(tokenizer.token_to_id(PAD) or 0)
    padded = [[*row, *[pad] * (length - len(row))] for row in ids]
    return padded, [[int(index < len(row)) for index in range(length)] for row in ids]


def unknown_words(tokenizer: Tokenizer, prompt: str) -> list[str]:
    """The words of a prompt that the tokenizer does not know, in order and without repetition."""
    encoding, unknown = tokenizer.encode(prompt), tokenizer.token_to_id(UNKNOWN)
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return list(dict.fromkeys(prompt[a:b] for token, (a, b) in spans if token == unknown))


def fault_of(tokenizer: Tokenizer, prompt: str) -> str:
    """Why a prompt cannot be drawn; empty if it can."""
    words = unknown_words(tokenizer, prompt)
    if words:
        return f"words outside the pocket generator's vocabulary: {with_near_words(words, WORDS)}"
    tokens = len(tokenizer.encode(prompt).ids)
    return "" if 1 < tokens <= MAX_TOKENS else f"a prompt has 1 to {MAX_TOKENS - 1} words and marks, not {tokens - 1}"
