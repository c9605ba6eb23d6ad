"""One answer of a loaded chat model, and how probable each of its tokens was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata

from gems.errors import InputError
from gems.models.transformers.constrained import Form, GrammarProcessor, can_constrain
from gems.models.transformers.loading import Engine
from gems.models.transformers.messages import read_answer
from gems.options import ChatOptions

if TYPE_CHECKING:
    import torch

__all__ = ["write_answer"]

_MAX_TOKENS: Final = 1024
"""New tokens of one answer, unless told otherwise."""


def write_answer(
    engine: Engine,
    turns: list[dict[str, Any]],
    form: Form,
    options: ChatOptions,
    stop: Sequence[str],
    top_logprobs: int | None,
) -> AIMessage:
    """One answer. ``top_logprobs`` is None where none are wanted.

    The response's metadata and log-probabilities are in OpenAI's form; the tokens of the latter make up all of the
    text, thoughts and calls too, but for what ended it.

    Raises:
        InputError: The messages cannot be put into the model's template, or are too long.
        NotImplementedError: The template knows no tools, or the schema cannot be held to.
        TimeoutError: It was not finished in time.
    """
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper

    inputs = _inputs(engine, turns, form)
    prompt = inputs["input_ids"].shape[1]
    limit = min(options.max_tokens or _MAX_TOKENS, engine.longest - prompt)
    if limit <= 0:
        raise InputError(f"these messages are {prompt} tokens and the model takes {engine.longest}")
    in_thought = engine.decode(inputs["input_ids"][0, -8:].tolist()).rstrip().endswith("<think>")
    # All of the sampling is in our own steps: the recorder sees the very scores that the token is drawn from.
    steps = LogitsProcessorList()
    sampling: dict[str, Any] = {"do_sample": False}
    grammar = form.grammar(engine.tokenizer.added_tokens_encoder, in_thought=in_thought) if can_constrain() else None
    if grammar:
        steps.append(GrammarProcessor(engine.vocabulary, grammar, prompt))
    if options.temperature:
        steps.append(TemperatureLogitsWarper(options.temperature))
        sampling = {"do_sample": True, "top_k": 0}
    recorder = _Recorder(top_logprobs) if top_logprobs is not None else None
    if recorder:
        steps.append(recorder)
    with torch.inference_mode():
        output = engine.model.generate(
            **inputs,
            **sampling,
            max_new_tokens=limit,
            max_time=options.timeout,
            logits_processor=steps,
            stop_strings=stop or None,
            tokenizer=engine.tokenizer,
        )
    tokens: list[int] = output[0, prompt:].tolist()
    made, ended = len(tokens), tokens[-1] in engine.ends
    tokens = tokens[:-1] if ended else tokens
    whole = engine.decode(tokens)
    text = whole[: min((at for s in stop if (at := whole.find(s)) >= 0), default=len(whole))]
    ended = ended or text != whole
    if not ended and made < limit:
        raise TimeoutError(f"no answer in {options.timeout:g} s, only the first {made} tokens of one")
    message = read_answer("<think>" * in_thought + text, may_call=bool(form.tools))
    message.usage_metadata = UsageMetadata(input_tokens=prompt, output_tokens=made, total_tokens=prompt + made)
    message.response_metadata = {"finish_reason": "stop" if ended else "length"}
    if recorder:
        recorder.note(output)
        told = _told(engine, tokens, whole, len(text), recorder.steps)
        message.response_metadata["logprobs"] = {"content": told}
    return message


def _inputs(engine: Engine, turns: list[dict[str, Any]], form: Form) -> dict[str, Any]:
    """The arguments of the model, on its device."""
    from jinja2 import TemplateError

    if form.tools and "tools" not in str(engine.processor.chat_template):
        raise NotImplementedError("this model's chat template does not support tools")
    try:
        inputs = engine.processor.apply_chat_template(
            turns,
            tools=list(form.tools) or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,  # what only looks like a control token in a message is text
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise InputError(f"this model cannot be shown these messages: {' '.join(str(error).split())[:300]}") from error
    return dict(inputs.to(engine.model.device, dtype=engine.model.dtype))


class _Recorder:
    """A logits processor that changes nothing, and notes the probability of each token and those of the likeliest.

    The scores of all steps together would be hundreds of megabytes.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._now: torch.Tensor | None = None
        self.steps: list[tuple[float, list[tuple[int, float]]]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.note(input_ids)
        self._now = scores[0].float().log_softmax(-1)
        return scores

    def note(self, input_ids: torch.Tensor) -> None:
        """The last of these tokens was drawn from the scores that were seen last."""
        if self._now is None:
            return
        best = self._now.topk(min(self._top, len(self._now)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [(token, value) for token, value in pairs if value > -math.inf]
        self.steps.append((self._now[input_ids[0, -1]].item(), top))


def _told(engine: Engine, tokens: list[int], whole: str, length: int, steps: Sequence[Any]) -> list[dict[str, Any]]:
    """The log-probabilities of the tokens that make up the text's first characters, in OpenAI's form."""
    told: list[dict[str, Any]] = []
    done = 0
    for end, (token, (chosen, likeliest)) in enumerate(zip(tokens, steps, strict=False), 1):
        if done >= length:
            break
        # A character that is spread over tokens belongs to the last of them.
        sure = len(whole) if end == len(tokens) else max(done, len(engine.decode(tokens[:end]).rstrip("\ufffd")))
        piece, done = whole[done : min(sure, length)], sure
        top = [
            {"token": piece if other == token else engine.decode([other]), "logprob": value}
            for other, value in likeliest
        ]
        told.append({"token": piece, "logprob": chosen, "top_logprobs": top})
    return told
