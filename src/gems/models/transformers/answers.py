"""Generate one answer with a loaded chat model, and measure how probable each of its tokens was."""

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
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = ["write_answer"]

_MAX_TOKENS: Final = 1024
"""Default limit on the new tokens of one answer."""


def write_answer(
    engine: Engine,
    turns: list[dict[str, Any]],
    form: Form,
    options: ChatOptions,
    stop: Sequence[str],
    top_logprobs: int | None,
) -> AIMessage:
    """Generate one answer. Log-probabilities are recorded unless ``top_logprobs`` is None.

    The response's metadata and log-probabilities have OpenAI's form. The tokens of the latter add up to the whole text,
    including thoughts and tool calls but not the token or text that ended it.

    Raises:
        InputError: The model's template rejects the messages, or they are too long.
        NotImplementedError: The template has no tools, or the answer cannot be constrained to the schema.
        TimeoutError: The answer was not finished in time.
    """
    import torch

    inputs = _inputs(engine, turns, form)
    prompt_length = inputs["input_ids"].shape[1]
    limit = min(options.max_tokens or _MAX_TOKENS, engine.longest - prompt_length)
    if limit <= 0:
        raise InputError(f"the messages are {prompt_length} tokens long, but the model takes at most {engine.longest}")
    in_thought = engine.decode(inputs["input_ids"][0, -8:].tolist()).rstrip().endswith("<think>")
    recorder = _Recorder(top_logprobs) if top_logprobs is not None else None
    steps = _logits_processors(engine, form, options, recorder, prompt_length, in_thought=in_thought)
    with torch.inference_mode():
        output = engine.model.generate(
            **inputs,
            **({"do_sample": True, "top_k": 0} if options.temperature else {"do_sample": False}),
            max_new_tokens=limit,
            max_time=options.timeout,
            logits_processor=steps,
            stop_strings=stop or None,
            tokenizer=engine.tokenizer,
        )
    tokens: list[int] = output[0, prompt_length:].tolist()
    count, is_finished = len(tokens), tokens[-1] in engine.ends
    tokens = tokens[:-1] if is_finished else tokens
    whole = engine.decode(tokens)
    text = whole[: min((at for s in stop if (at := whole.find(s)) >= 0), default=len(whole))]
    is_finished = is_finished or text != whole
    if not is_finished and count < limit:
        raise TimeoutError(f"no answer in {options.timeout:g} s, only its first {count} tokens")
    message = read_answer("<think>" * in_thought + text, may_call=bool(form.tools))
    message.usage_metadata = UsageMetadata(
        input_tokens=prompt_length, output_tokens=count, total_tokens=prompt_length + count
    )
    message.response_metadata = {"finish_reason": "stop" if is_finished else "length"}
    if recorder:
        recorder.note(output)
        content = _logprobs(engine, tokens, whole, len(text), recorder.steps)
        message.response_metadata["logprobs"] = {"content": content}
    return message


def _logits_processors(
    engine: Engine,
    form: Form,
    options: ChatOptions,
    recorder: _Recorder | None,
    prompt_length: int,
    *,
    in_thought: bool,
) -> Any:
    """All of the sampling in explicit steps, so that the recorder sees the very scores that tokens are drawn from."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper

    steps = LogitsProcessorList()
    grammar = form.grammar(engine.tokenizer.added_tokens_encoder, in_thought=in_thought) if can_constrain() else None
    if grammar:
        steps.append(GrammarProcessor(engine.vocabulary, grammar, prompt_length))
    if options.temperature:
        steps.append(TemperatureLogitsWarper(options.temperature))
    if recorder:
        steps.append(recorder)
    return steps


def _inputs(engine: Engine, turns: list[dict[str, Any]], form: Form) -> dict[str, Any]:
    """The model's arguments, on its device."""
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
            sanitize_control_tokens=True,  # text in a message that looks like a control token stays text
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise InputError(f"the model's chat template rejects the messages: {one_line(error)[:300]}") from error
    return dict(inputs.to(engine.model.device, dtype=engine.model.dtype))


class _Recorder:
    """A logits processor that changes nothing and records the log-probability of each token and of the likeliest ones.

    Keeping the scores of all steps instead would take hundreds of megabytes.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._latest: torch.Tensor | None = None
        self.steps: list[tuple[float, list[tuple[int, float]]]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.note(input_ids)
        self._latest = scores[0].float().log_softmax(-1)
        return scores

    def note(self, input_ids: torch.Tensor) -> None:
        """Record the last of these tokens, which was drawn from the latest scores."""
        if self._latest is None:
            return
        best = self._latest.topk(min(self._top, len(self._latest)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [(token, value) for token, value in pairs if value > -math.inf]
        self.steps.append((self._latest[input_ids[0, -1]].item(), top))


def _logprobs(engine: Engine, tokens: list[int], whole: str, length: int, steps: Sequence[Any]) -> list[dict[str, Any]]:
    """The log-probabilities, in OpenAI's form, of the tokens that add up to the text's first ``length`` characters."""
    content: list[dict[str, Any]] = []
    position = 0
    for count, (token, (logprob, likeliest)) in enumerate(zip(tokens, steps, strict=False), 1):
        if position >= length:
            break
        # A character that is spread over tokens belongs to the last of them.
        decoded = whole if count == len(tokens) else engine.decode(tokens[:count]).rstrip("\ufffd")
        end = max(position, len(decoded))
        piece, position = whole[position : min(end, length)], end
        top = [
            {"token": piece if other == token else engine.decode([other]), "logprob": value}
            for other, value in likeliest
        ]
        content.append({"token": piece, "logprob": logprob, "top_logprobs": top})
    return content
