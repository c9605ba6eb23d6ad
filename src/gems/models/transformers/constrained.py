"""What an answer has to look like: told to the model in words, and held to it, token by token, by llguidance."""

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
"""JSON on one line: where any white space is allowed, a weak model may write nothing else until its tokens are up."""


def can_constrain() -> bool:
    """Whether answers can be held to a grammar."""
    return importlib.util.find_spec("llguidance") is not None


@dataclass(frozen=True)
class Form:
    """What an answer has to look like.

    Attributes:
        tools: Those that are offered.
        callable: Those of them that may be called.
        forced: Whether one has to be.
        schema: Of the JSON that the answer has to be, if it calls no tool.
    """

    tools: tuple[dict[str, Any], ...] = ()
    callable: tuple[dict[str, Any], ...] = ()
    forced: bool = False
    schema: dict[str, Any] | None = None

    @classmethod
    def of(cls, tools: Sequence[dict[str, Any]], choice: str, response_format: Mapping[str, Any] | None) -> Form:
        """Read the arguments of a call.

        Raises:
            InputError: The choice is none of the tools.
        """
        schema = None
        if response_format and response_format["type"] != "text":
            schema = response_format.get("json_schema", {}).get("schema", {"type": "object"})
        if choice == "none":
            return cls(schema=schema)
        named = [tool for tool in tools if choice in ("auto", "any", tool["function"]["name"])]
        if choice != "auto" and not named:
            offered = ", ".join(tool["function"]["name"] for tool in tools) or "none"
            raise InputError(f"tool_choice: there is no tool for {choice!r}; there are {offered}")
        return cls(tuple(tools), tuple(named), choice != "auto", schema)

    def words(self) -> str:
        """How the model is told; empty: there is nothing to tell. The tools it is shown by its template."""
        if self.forced:
            names = " or ".join(tool["function"]["name"] for tool in self.callable)
            return f"Answer with one call of the tool {names}, and with nothing else."
        if self.schema is None:
            return ""
        fits = "" if self.schema == {"type": "object"} else f" that fits this JSON schema:\n{json.dumps(self.schema)}"
        call = "Call a tool, or answer" if self.callable else "Answer"
        return f"{call} with one JSON object and nothing else{fits}"

    def grammar(self, added: Mapping[str, int], *, in_thought: bool) -> str | None:
        """The same as a grammar in llguidance's dialect of Lark; None: any text will do.

        Args:
            added: The tokens that were added to the tokenizer's vocabulary: llguidance takes none of them for text.
            in_thought: The template opened a thought, which has to be closed first.
        """
        if not self.forced and self.schema is None:
            return None
        ways = [_call_rule(tool["function"], added) for tool in self.callable]
        if self.schema is not None and not self.forced:
            ways.append(_json_rule(self.schema))
        rules = "\n".join(f"way{i}: {way}" for i, way in enumerate(ways))
        closing = rf'{_tag("</think>", added)} "\n\n"' if in_thought else ""
        return f"start: {closing} ({' | '.join(f'way{i}' for i in range(len(ways)))})\n{rules}\n"


def _json_rule(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps(_closed(schema) | {'x-guidance': _JSON_STYLE})}"


def _closed(schema: Any) -> Any:
    """The schema with no properties in its objects but those that it names, unless it says otherwise."""
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
    # References are to the root of the schema, which is the call.
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
    """A logits processor that leaves only the tokens with which an answer still fits its form."""

    def __init__(self, vocabulary: Any, grammar: str, prompt: int) -> None:
        from llguidance import LLMatcher

        compiled = LLMatcher.grammar_from_lark(grammar)
        wrong, said = LLMatcher.validate_grammar_with_warnings(compiled, vocabulary)
        if wrong:
            raise NotImplementedError(f"an answer cannot be held to this schema: {' '.join(said[0].split())[:300]}")
        self._matcher = LLMatcher(vocabulary, compiled, log_level=0)
        self._read = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Args: the tokens so far, of shape (1, length), and the scores of the next, of shape (1, vocabulary)."""
        import numpy as np
        import torch

        for token in input_ids[0, self._read :].tolist():
            if not self._matcher.is_stopped():  # an end that was reached; some devices go on for a step
                self._matcher.consume_token(token)
        self._read = input_ids.shape[1]
        if self._matcher.is_error():
            fault = one_line(self._matcher.get_error())
            raise BackendError(f"the answer could not be held to its schema: {fault}", retryable=False)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: scores.shape[-1]].astype(bool))
        return scores.masked_fill(~allowed.to(scores.device), -math.inf)
