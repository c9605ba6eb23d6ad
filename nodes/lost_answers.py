"""What calls may have taken whose answers nobody knows: they were cancelled, cut off, or lost on their way.

The server has worked on them, and may charge for them. Limits that count nothing for them would not hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from langchain_core.messages import BaseMessage

from gems.errors import BackendError
from gems.graph.budget import Prices
from gems.graph.state import Usage
from gems.models.failures import may_be_charged
from gems.options import ChatOptions
from gems.stopping import WaitEnded

__all__ = ["Question", "lost_answers"]

_BYTES_PER_TOKEN: Final = 3
"""English has four, and Chinese three: an estimate that is rather too high."""
_PIXELS_PER_TOKEN: Final = 750
"""As Anthropic counts images; most others take fewer tokens for them."""
_USUAL_ANSWER: Final = 1000
"""Tokens of a long answer to one of the forms."""
_FORMS: Final = ("tools", "functions", "response_format", "format")
"""The parameters of a request that hold a form, which is read like the prompt."""


@dataclass(frozen=True, slots=True)
class Question:
    """A call that is being made, as far as it tells what its answer may cost.

    Attributes:
        role: The role whose model is called.
        prompt_tokens: An estimate of what the model reads.
        longest: The most tokens of an answer, if that is limited.
    """

    role: str
    prompt_tokens: int
    longest: int | None

    @classmethod
    def of(
        cls, role: str, options: ChatOptions, conversations: Sequence[Sequence[BaseMessage]], params: Mapping[str, Any]
    ) -> Self:
        """The question that is sent with these messages and parameters."""
        contents = [message.content for messages in conversations for message in messages]
        blocks = [block for content in contents for block in ([content] if isinstance(content, str) else content)]
        texts = [block if isinstance(block, str) else str(block.get("text", "")) for block in blocks]
        texts += [json.dumps(params[name], default=str) for name in _FORMS if params.get(name)]
        size = sum(len(text.encode(errors="replace")) for text in texts)
        images = sum(isinstance(block, dict) and "image" in str(block.get("type")) for block in blocks)
        of_images = images * math.ceil(options.image_size**2 / _PIXELS_PER_TOKEN)
        return cls(role, math.ceil(size / _BYTES_PER_TOKEN) + of_images, options.max_tokens)

    def lost(self, answers: int, longest_so_far: int, prices: Prices) -> Usage:
        """What so many answers may have taken that nobody knows.

        Args:
            answers: How many; the same question may have been sent several times.
            longest_so_far: The tokens of the run's longest answer.
            prices: The prices of the models.
        """
        longest = min(max(_USUAL_ANSWER, longest_so_far), self.longest or math.inf)
        estimate = Usage(prompt_tokens=self.prompt_tokens * answers, completion_tokens=int(longest) * answers)
        cost = prices.cost(estimate) + prices.extra_cost(self.role, estimate)
        return Usage(lost_tokens=estimate.tokens, lost_cost=max(0.0, cost))


def lost_answers(error: BaseException) -> int:
    """How many requests of a failed call may have been answered, and charged, although their answers are not known."""
    if isinstance(error, (BackendError, WaitEnded)) and error.lost_answers is not None:
        return error.lost_answers
    is_stop = isinstance(error, WaitEnded) or not isinstance(error, Exception)  # a cancelled task
    return 1 if is_stop else int(may_be_charged(error))
