"""The generator's tokenizer: one token for each word of the closed list that captions are made of."""

from __future__ import annotations

from typing import Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gems.models.pocket.captions import WORDS
from gems.models.pocket.vocabulary import with_near_words

__all__ = ["END", "MAX_TOKENS", "PAD", "UNKNOWN", "build_tokenizer", "fault_of", "unknown_words"]

PAD: Final = "[PAD]"
UNKNOWN: Final = "[UNK]"
END: Final = "[END]"
"""Ends every prompt. Alone it is the empty prompt, which classifier-free guidance steers away from."""

MAX_TOKENS: Final = 128


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer over ``captions.WORDS``; ids 0, 1, 2 are PAD, UNKNOWN and END."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate((PAD, UNKNOWN, END, *WORDS))}, UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def unknown_words(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[str]:
    """The words of a prompt that the tokenizer does not know, in order and without repetition."""
    encoding = tokenizer(prompt, return_offsets_mapping=True)
    spans = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    return list(dict.fromkeys(prompt[a:b] for token, (a, b) in spans if token == tokenizer.unk_token_id))


def fault_of(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """Why a prompt cannot be drawn; empty if it can."""
    words = unknown_words(tokenizer, prompt)
    if words:
        return f"words outside the pocket generator's vocabulary: {with_near_words(words, WORDS)}"
    tokens, limit = len(tokenizer(prompt)["input_ids"]), tokenizer.model_max_length
    return "" if 1 < tokens <= limit else f"a prompt has 1 to {limit - 1} words and marks, not {tokens - 1}"
