"""Which errors mean that a chat model or its server does not support a request, and what in it they are about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from langchain_core.messages import BaseMessage

from gems.errors import GemsError, is_unpaid, lacks_memory
from gems.models.failures import is_moderated, is_too_long, reads_no_images, reason_of, status_of

__all__ = [
    "OF_IMAGES",
    "OF_METHOD",
    "gives_no_reason",
    "is_not_understood",
    "is_unsupported",
    "refuses_images",
    "refuses_system_role",
]

_UNSUPPORTED_STATUSES: Final = frozenset({400, 405, 415, 422, 501})
"""HTTP statuses of a server that does not understand a request."""
_UNSUPPORTED_TEXT: Final = re.compile(
    r"(?:not|n't) (?:\w+ )?support|unsupported|not implemented|unknown|requires|missing data required"
    r"|endpoints found that|grammar|not allowed to request",
    re.IGNORECASE,
)
"""The same in words, for servers that use other statuses: llama.cpp 500, OpenRouter 404, OpenAI 403."""
_FEATURE: Final = re.compile(
    r"\btool|function.?call|response.?format|response_?mime|json|schema|structured|grammar|log.?prob|image|vision"
    r"|multi-?modal|mmproj|temperature|\bseed|\btop_|\bmax_|\bstop\b|penalty|reasoning_|thinking|\broles?\b"
    r"|\b(?:system|developer) (?:message|prompt|instruction|role)|content.(?:type|part|block)|\bparam|\bfield",
    re.IGNORECASE,
)
"""What a request can be asked without, or in another way."""
_OF_NO_REQUEST: Final = re.compile(
    r"\b(?:countr(?:y|ies)|territor(?:y|ies)|user location|your (?:location|region)|region)\b"
    r"|\byour (?:account|organi[sz]ation|project|workspace|plan|subscription|tier|team)\b|\bcapacity\b"
    r"|accept\b.{0,40}\b(?:terms|licen[cs]e|agreement)|on-demand throughput|access to (?:the|this) model"
    r"|\bmodels?\b[^.;]{0,60}?\b(?:deprecated|decommissioned|retired|discontinued|sunset|no longer|unavailable"
    r"|(?:does not|doesn't) exist|invalid|not (?:found|known|available|supported|valid|loaded))"
    r"|\b(?:no such|unknown|invalid|unsupported|not an? (?:valid|known|available)) model\b"
    r"|not work with (?:\w+ ){0,2}model\b"
    r"|\bHTTPS (?:server|port)\b|\bSSL-enabled server"
    r"|\b(?:only (?:for|in|with|from)|requires?|unsupported|invalid) (?:\w+ ){0,2}api.?version",
    re.IGNORECASE,
)
"""What servers say of a model, an account, a country or themselves, which another way of asking does not change."""
_MODEL_NAMES: Final = re.compile(
    r"\b(model\b[:,]?) (?:[`'\"][^`'\"]+[`'\"]|(?=\S*[\d/:-])[\w.@/:-]*[\w/])", re.IGNORECASE
)
"""Names of models, which may be called after what they do."""


def is_unsupported(text: str) -> bool:
    """Whether an error's text says that the model or server does not support something in the request."""
    words = _MODEL_NAMES.sub(r"\1", text)
    return bool(_UNSUPPORTED_TEXT.search(words) and _FEATURE.search(words)) and not lacks_memory(text)


def _is_of_no_request(text: str) -> bool:
    """Whether an error is about the model, the account, the country or the machine: any request would be refused."""
    words = _MODEL_NAMES.sub(r"\1", text)
    return lacks_memory(text) or (bool(_OF_NO_REQUEST.search(words)) and not _FEATURE.search(words))


def is_not_understood(error: Exception) -> bool:
    """Whether an error means that the model does not support the request, rather than that it cannot be reached.

    A question that is too long, or that moderation refuses, is understood: another way of asking is no better.
    """
    status = status_of(error)
    if status is None:  # the model's package does not support it, and says so before any request
        unsupported = isinstance(error, (TypeError, ValueError)) and not isinstance(error, GemsError)
        return isinstance(error, NotImplementedError) or (unsupported and bool(_NO_ARGUMENT.search(str(error))))
    if is_too_long(error) or is_moderated(error):
        return False
    if status in _UNSUPPORTED_STATUSES:
        return not (is_unpaid(reason_of(error)) or _is_of_no_request(reason_of(error)))
    if reads_no_images(error):
        return True
    return (status in (403, 404) or status >= 500) and is_unsupported(reason_of(error))


_NO_ARGUMENT: Final = re.compile(
    r"unexpected keyword|(?:unsupported|unrecognized|unknown|invalid) .{0,40}(?:argument|method|parameter|schema)"
    r"|not (?:\w+ )?support|must be|tool_choice",
    re.IGNORECASE,
)
"""How packages say that they do not know a parameter or a method."""
OF_IMAGES: Final = re.compile(r"image|vision|multi-?modal|mmproj", re.IGNORECASE)
"""How servers say that a model does not see."""


def refuses_images(error: Exception, messages: Sequence[BaseMessage]) -> bool:
    """Whether messages were refused because the model reads no images, and there are some in them."""
    blocks = (block for message in messages if isinstance(message.content, list) for block in message.content)
    has_images = any(isinstance(block, dict) and block.get("type") != "text" for block in blocks)
    return has_images and reads_no_images(error)


OF_METHOD: Final = re.compile(r"response_format|schema|json|tool|function|grammar", re.IGNORECASE)
"""How servers say that they do not know a method."""
_NO_SYSTEM_ROLE: Final = re.compile(
    r"\broles?\b|角色|raise_exception|['`\"]system['`\"]|first message"
    r"|\b(?:system|developer)\W{0,3}(?:message|prompt|instruction|turn)"
    r"|messages?\b\W*(?:of |type |is |was )*\W*system\b|(?:chat|jinja|prompt) ?template|template ?error",
    re.IGNORECASE,
)
"""How servers and chat templates say that they know no system messages, or none at that place. Whatever they say of
roles is a reason to try without; that costs one call, and nothing is concluded from it unless that call succeeds."""


def refuses_system_role(error: Exception) -> bool:
    """Whether a model or server says that it knows no system messages, or none at that place."""
    is_refusal = isinstance(error, GemsError) or status_of(error) is not None
    return is_refusal and bool(_NO_SYSTEM_ROLE.search(reason_of(error)))


_OTHER_REASONS: Final = re.compile(
    r"api.?key|auth|credential|permission|quota|budget|billing|balance|credit|payment"
    r"|rate.?limit|too (?:many|long|large)"
    r"|context|tokens?\b|policy|moderat|safety|filter|flagged|inappropriate|sensitive|model.{0,80}(?:exist|found|known)"
    r"|(?:no such|unknown|invalid) model|response_format|schema|json_object|json mode|tools?\b|tool_|function|grammar"
    r"|logprob|image|vision|multi-?modal|mmproj|param|field|max_|temperature"
    r"|died|crash|cuda|memory|engine|worker|overload|unavailable|time[d]? ?out|upstream|gateway"
    r"|余额|欠费|敏感|令牌|密钥",
    re.IGNORECASE,
)
"""What refusals are about that are not about roles."""


def gives_no_reason(error: Exception) -> bool:
    """Whether a request was refused for a reason that its text does not tell, in any words that are known."""
    reason = reason_of(error)
    return status_of(error) in (400, 422, 500) and not (_OTHER_REASONS.search(reason) or _is_of_no_request(reason))
