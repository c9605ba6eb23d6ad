"""Keeps secrets out of everything that is written down: error messages, logs, checkpoints, records, reports."""

from __future__ import annotations

import base64
import json
import os
import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote, quote_plus

from pydantic import SecretStr

from gems.printable import printable

__all__ = ["conceal", "holds_secret", "is_secret_name", "one_line", "remember_secret"]

_IS_SECRET: Final = re.compile(
    r"((^|_)(key|token|auth|authorization|bearer|cookie|credentials?|pwd)|(api_?key|pass_?w(or)?d|pass_?phrase|secret)s?)"
    r"(_?\d+)?$"
)
"""Matches the ends of names that hold secrets, in snake case."""
_IS_PUBLIC: Final = re.compile(
    r"(^|_)((cache|content|foreign|idempotency|primary|public|sort)_key|(bos|eos|max|page|pad|progress|stop)_token)$"
)
"""Matches the names among them that hold none."""
_NEW_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+")
_LOGIN: Final = re.compile(r"://[^/?#\s]*@")
"""Matches the login in an address."""
_QUERY: Final = re.compile(r"[?&;#]([^\s=?&;#]{1,100})=[^\s&;#]")
"""Matches a parameter of an address."""
_NOT_HIDDEN: Final = frozenset({"PWD", "GOOGLE_APPLICATION_CREDENTIALS"})
"""Environment variables that hold paths."""

_MIN_LENGTH: Final = 6
"""Characters. A shorter value may be part of ordinary words, and protects nothing."""

_from_options: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether a variable, field or header with this name holds a secret, in whatever style the name is written."""
    words = _NEW_WORD.sub("_", name).lower()
    return bool(_IS_SECRET.search(words)) and not _IS_PUBLIC.search(words)


def holds_secret(value: object) -> bool:
    """Whether a value is an address with a login, or with a parameter whose name is that of a secret."""
    if not isinstance(value, str) or "://" not in value:
        return False
    return bool(_LOGIN.search(value)) or any(map(is_secret_name, _QUERY.findall(value)))


def remember_secret(secret: SecretStr | None) -> None:
    """Conceal a secret that was given as an option, not by the environment, from now on."""
    if secret is not None and len(value := secret.get_secret_value().strip()) >= _MIN_LENGTH:
        _from_options.add(value)


def conceal(text: str) -> str:
    """The text with every secret replaced by ``[key]``, since servers repeat secrets in their error messages."""
    # Stripped, because a line break that was copied along with a key is printed in other ways than the key.
    names = (name for name in os.environ.keys() - _NOT_HIDDEN if is_secret_name(name))
    from_environment = {os.environ[name].strip() for name in names}
    secrets = [secret for secret in from_environment | _from_options if len(secret) >= _MIN_LENGTH]
    for form in sorted({form for secret in secrets for form in _forms_of(secret)}, key=len, reverse=True):
        text = text.replace(form, "[key]")
    return text


@lru_cache(maxsize=256)
def _forms_of(secret: str) -> frozenset[str]:
    """A secret as it is, and as it stands in the address, the header or the JSON that a server repeats."""
    quoted = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    quoted |= {re.sub("%..", lambda match: match[0].lower(), text) for text in quoted}
    twice = {text.replace("%", "%25") for text in quoted}
    encoded = _in_base64(secret.encode())
    encoded |= {text.replace("+", "-").replace("/", "_") for text in encoded}
    return frozenset({secret, json.dumps(secret)[1:-1]} | quoted | twice | encoded)


def _in_base64(secret: bytes) -> set[str]:
    """Base64 of a secret, and what it always contains if something, such as "user:", stands around the secret."""
    whole = base64.b64encode(secret).decode()
    inner = {
        base64.b64encode(b"\0" * offset + secret).decode().rstrip("=")[first:-1]
        for offset, first in ((0, 0), (1, 2), (2, 3))
    }
    return {whole, whole.rstrip("=")} | {text for text in inner if len(text) >= _MIN_LENGTH}


def one_line(text: object, max_length: int = 300) -> str:
    """An error's text on one line, without secrets and control characters, cut to ``max_length``; it may be empty."""
    return conceal(" ".join(printable(str(text)).split()))[:max_length]
