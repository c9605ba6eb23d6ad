"""What an answer says, apart from what its model thought before or after it."""

from __future__ import annotations

import re
from typing import Any, Final

from langchain_core.messages import AIMessage

from gems.models.endings import has_ended
from gems.models.lenient import json_values, prose_after, prose_around

__all__ = ["answer_text", "answered_objects", "drafts_in", "reasoning_of", "thinks_on", "words_after", "words_around"]


def answer_text(message: AIMessage) -> str:
    """The text of an answer, without what the model thought."""
    return _without_thoughts(str(message.text))


def answered_objects(message: AIMessage) -> list[Any]:
    """The JSON in an answer: what stands in its text, then the arguments of its calls."""
    return [*json_values(answer_text(message)), *(call["args"] for call in message.tool_calls)]


def words_around(message: AIMessage) -> str:
    """What an answer says around the JSON in it, without what the model thought."""
    return prose_around(answer_text(message))


def words_after(message: AIMessage) -> str:
    """What an answer says after the JSON in it."""
    return prose_after(answer_text(message))


def reasoning_of(message: AIMessage) -> str:
    """What a reasoning model thought before it answered; empty if its provider does not return it."""
    blocks = [b for b in message.content_blocks if b["type"] == "reasoning"]
    reasoning = "\n".join(str(b.get("reasoning", "")) for b in blocks).strip()
    # LangChain makes blocks of OpenAI's own reasoning only, not of other servers with OpenAI's protocol.
    return reasoning or str(message.additional_kwargs.get("reasoning_content") or "").strip()


def drafts_in(message: AIMessage) -> tuple[str, ...]:
    """What the model thought, in which JSON is a draft: in the text of an answer, and as its provider returns it."""
    return tuple(_said_in(thought) or thought for thought in _thoughts_in(message))


def thinks_on(message: AIMessage) -> bool:
    """Whether an answer is nothing but a thought that goes on after the JSON in it: so that may be a draft."""
    is_ended = has_ended(message)
    return not answer_text(message).strip() and any(_goes_on(part, is_ended) for part in _thoughts_in(message))


def _thoughts_in(message: AIMessage) -> tuple[str, str]:
    text = str(message.text)
    thought = _first_turn(text, _TURN_ENDS) if answer_text(message) != text else ""
    return thought, reasoning_of(message)


def _said_in(thought: str) -> str:
    """The answer behind a thought, where a server puts both into one; empty if there is no JSON."""
    _, *parts = _THOUGHT_ENDS.split(thought)
    return parts[-1] if parts and json_values(parts[-1]) else ""


def _goes_on(thought: str, is_ended: bool) -> bool:
    """Whether a thought goes on after its JSON; what closes an answer that has ended is a whole sentence."""
    words = prose_after(_END.sub("", _THOUGHT_ENDS.sub("", thought)))
    is_closed = is_ended and _SENTENCE_ENDS.search(words)
    return not (_said_in(thought) or is_closed) and bool(re.search(r"\w", words))


_SENTENCE_ENDS: Final = re.compile(r"[^\w\s,;:(\[–—-]\s*\Z")


def _without_thoughts(text: str) -> str:
    """A text without what was thought, before it or after it; chat templates may contain the opening tag."""
    text = _first_turn(text, _TURN_ENDS)
    text = _ANALYSIS.sub("", _BEFORE_FINAL.sub("", text))
    text = _THOUGHT_ENDS.sub("</think>", _THOUGHT_BEGINS.sub("<think>", text))
    return _first_turn(_THOUGHTS.sub("", text).rpartition("</think>")[2], _END)


def _first_turn(text: str, ends: re.Pattern[str]) -> str:
    """A text up to the end of its first turn that says something: what follows is a conversation that is made up."""
    return next((turn for turn in ends.split(text) if re.search(r"\w", turn)), text)


_TURN_ENDS: Final = re.compile(
    r"<\|(?:im_end|im_start|eot_id|endoftext|end_of_text|eom_id|return|start_header_id|user|endofturn)\|>"
    r"|</s>|<(?:end_of_turn|start_of_turn|eos)>|\[/?INST\]|<\|END_OF_TURN_TOKEN\|>|<｜(?:end▁of▁sentence|User)｜>"
)
"""How chat templates mark that a turn ends, where a server lets a model go on behind that."""
_END: Final = re.compile(r"<\|end\|>")
"""The same of Phi; in gpt-oss, it also ends what is thought."""
_THOUGHTS: Final = re.compile(r"<think>(?:(?!<think>).)*?(?:</think>|\Z)", re.DOTALL)
_THOUGHT_TAG: Final = r"(?:ant)?(?:thinking|thoughts?|reasoning|reflection|analysis|scratchpad)|seed:think|think"
_THOUGHT_BEGINS: Final = re.compile(
    rf"<(?:{_THOUGHT_TAG})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>", re.IGNORECASE
)
_THOUGHT_ENDS: Final = re.compile(
    rf"</(?:{_THOUGHT_TAG})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>", re.IGNORECASE
)
"""How chat models mark what they think, where their server does not split it off."""
_BEFORE_FINAL: Final = re.compile(r"\A.*<\|channel\|>final\b[^<]*<\|message\|>", re.DOTALL)
_ANALYSIS: Final = re.compile(r"<\|channel\|>analysis\b[^<]*<\|message\|>.*?(?:<\|end\|>|\Z)", re.DOTALL)
"""The same in the channels of gpt-oss."""
