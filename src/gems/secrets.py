"""Keeps secrets out of everything that is written down: error messages, logs, checkpoints, records, reports."""

from __future__ import annotations

import os
import re
from typing import Final

from pydantic import SecretStr

from gems.printable import printable

__all__ = ["conceal", "is_secret_name", "one_line", "remember_secret"]

_IS_SECRET: Final = re.compile(r"(_|^)(API_?KEY|KEY|TOKEN|SECRET|(PG)?PASSWORD)$", re.IGNORECASE)
"""Names of environment variables that hold secrets."""

_MIN_LENGTH: Final = 6
"""Characters. A shorter value may be part of ordinary words, and protects nothing."""

_from_options: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether a variable or a field with this name holds a secret."""
    return bool(_IS_SECRET.search(name))


def remember_secret(secret: SecretStr | None) -> None:
    """Conceal a secret that was given as an option, not by the environment, from now on."""
    if secret is not None and len(value := secret.get_secret_value().strip()) >= _MIN_LENGTH:
        _from_options.add(value)


def conceal(text: str) -> str:
    """The text with every secret replaced by ``[key]``, since servers repeat secrets in their error messages."""
    # Stripped, because a line break that was copied along with a key is printed in other ways than the key.
    from_environment = {value.strip() for name, value in os.environ.items() if is_secret_name(name)}
    secrets = [secret for secret in from_environment | _from_options if len(secret) >= _MIN_LENGTH]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "[key]")
    return text


def one_line(text: object, max_length: int = 300) -> str:
    """An error's text on one line, without secrets and control characters, cut to ``max_length``; it may be empty."""
    return conceal(" ".join(printable(str(text)).split()))[:max_length]
