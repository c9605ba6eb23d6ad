"""The form an answer must have: described to the model in words, and enforced token by token by llguidance."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gems.errors import BackendError, InputError
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = ["Form", "GrammarProcessor", "can_constrain"]

_JSON_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
"""JSON on one line. If any white space were allowed, a weak model might write nothing else until its token limit."""


def can_constrain() -> bool:
    """Whether answers can be constrained to a grammar."""
    return importlib.util.find_spec("llguidance") is not None


@dataclass(frozen=True)
class Form:
    """The form an answer must have.

    Attributes:
        tools: The tools offered to the model.
        callable_tools: The tools that may be called.
        call_required: Whether one of ``callable_tools`` must be called.
        schema: The JSON schema of an answer that calls no tool; None allows any text.
    """

    tools: tuple[dict[str, Any], ...] = ()
    callable_tools: tuple[dict[str, Any], ...] = ()
    call_required: bool = False
    schema: dict[str, Any] | None = None

    @classmethod
    def of(cls, tools: Sequence[dict[str, Any]], choice: str, response_format: Mapping[str, Any] | None) -> Form:
        """The form that the arguments of a call ask for.

        Raises:
            InputError: The choice names none of the tools.
        """
        schema = None
        if response_format and response_format["type"] != "text":
            schema = response_format.get("json_schema", {}).get("schema", {"type": "object"})
        if choice == "none":
            return cls(schema=schema)
        callable_tools = [tool for tool in tools if choice in ("auto", "any", tool["function"]["name"])]
        if choice != "auto" and not callable_tools:
            offered = ", ".join(tool["function"]["name"] for tool in tools) or "none"
            raise InputError(f"tool_choice {choice!r} matches none of the tools offered: {offered}")
        return cls(tuple(tools), tuple(callable_tools), choice != "auto", schema)

    def words(self) -> str:
        """The form in words; empty if it requires nothing. The tools themselves are shown by the model's template."""
        if self.call_required:
            names = " or ".join(tool["function"]["name"] for tool in self.callable_tools)
            return f"Answer with one call of the tool {names}, and with nothing else."
        if self.schema is None:
            return ""
        fits = "" if self.schema == {"type": "object"} else f" that fits this JSON schema:\n{json.dumps(self.schema)}"
        call = "Call a tool, or answer" if self.callable_tools else "Answer"
        return f"{call} with one JSON object and nothing else{fits}"

    def grammar(self, added: Mapping[str, int], *, in_thought: bool) -> str | None:
        """The form as a grammar in llguidance's dialect of Lark; None if it allows any text.

        Args:
            added: The tokens added to the tokenizer's vocabulary, which llguidance does not accept as text.
            in_thought: Whether the template opened a thought, which must be closed first.
        """
        if not self.call_required and self.schema is None:
            return None
        ways = [_call_rule(tool["function"], added) for tool in self.callable_tools]
        if self.schema is not None and not self.call_required:
            ways.append(_json_rule(self.schema))
        rules = "\n".join(f"way{i}: {way}" for i, way in enumerate(ways))
        closing = rf'{_tag("</think>", added)} "\n\n"' if in_thought else ""
        return f"start: {closing} ({' | '.join(f'way{i}' for i in range(len(ways)))})\n{rules}\n"


def _json_rule(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps(_closed(schema) | {'x-guidance': _JSON_STYLE})}"


def _closed(schema: Any) -> Any:
    """The schema with additional properties forbidden in its objects, unless it allows them explicitly."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if schema.get("type") == "object" and schema.get("properties"):
        closed.setdefault("additionalProperties", False)
    return closed


def _call_rule(function: Mapping[str, Any], added: Mapping[str, int]) -> str:
    arguments = dict(function.get("parameters") or {"type": "object"})
    # References are relative to the root of the schema, which is the call.
    definitions = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
    call = definitions | {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
    }
    return rf'{_tag("<tool_call>", added)} "\n" {_json_rule(call)} "\n" {_tag("</tool_call>", added)}'


def _tag(text: str, added: Mapping[str, int]) -> str:
    return f"<[{added[text]}]>" if text in added else f'"{text}"'


class GrammarProcessor:
    """A logits processor that allows only the tokens with which an answer still matches its form."""

    def __init__(self, vocabulary: Any, grammar: str, prompt_length: int) -> None:
        from llguidance import LLMatcher

        compiled = LLMatcher.grammar_from_lark(grammar)
        is_invalid, warnings = LLMatcher.validate_grammar_with_warnings(compiled, vocabulary)
        if is_invalid:
            reason = " ".join(warnings[0].split())[:300]
            raise NotImplementedError(f"an answer cannot be constrained to this schema: {reason}")
        self._matcher = LLMatcher(vocabulary, compiled, log_level=0)
        self._read = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mask the next token's scores (1, vocabulary), given the tokens so far (1, length)."""
        import numpy as np
        import torch

        for token in input_ids[0, self._read :].tolist():
            if not self._matcher.is_stopped():  # the form is complete, but some devices run one more step
                self._matcher.consume_token(token)
        self._read = input_ids.shape[1]
        if self._matcher.is_error():
            fault = one_line(self._matcher.get_error())
            raise BackendError(f"the answer could not be constrained to its schema: {fault}", retryable=False)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: scores.shape[-1]].astype(bool))
        return scores.masked_fill(~allowed.to(scores.device), -math.inf)
