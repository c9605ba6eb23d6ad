"""Keeps keys out of everything that is written down: error lines, logs, checkpoints, records, reports."""

from __future__ import annotations

import os
import re
from typing import Final

from pydantic import SecretStr

__all__ = ["conceal", "one_line", "remember_secret"]

_IS_SECRET: Final = re.compile(r"(_|^)(API_?KEY|KEY|TOKEN|SECRET|(PG)?PASSWORD)$", re.IGNORECASE)
"""Names of environment variables whose values are nobody's business."""

_SHORTEST: Final = 6
"""Characters. Anything shorter stands in ordinary words, and guards nothing."""

_given: set[str] = set()


def remember_secret(secret: SecretStr | None) -> None:
    """Conceal this one too from now on: it was given as an option, not by the environment."""
    if secret is not None and len(value := secret.get_secret_value().strip()) >= _SHORTEST:
        _given.add(value)


def conceal(text: str) -> str:
    """The text with every known key in it replaced: servers repeat them in their error messages."""
    # Stripped: a line's end that came along with a key is shown in other ways than the key itself.
    named = {value.strip() for name, value in os.environ.items() if _IS_SECRET.search(name)}
    for secret in sorted((s for s in named | _given if len(s) >= _SHORTEST), key=len, reverse=True):
        text = text.replace(secret, "[key]")
    return text


def one_line(text: object, most: int = 300) -> str:
    """What a person is told of a fault: in one line, without keys, so many characters at most; may be empty."""
    return conceal(" ".join(str(text).split()))[:most]
