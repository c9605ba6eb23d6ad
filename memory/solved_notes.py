"""Notes of which prompts are solved, signed: nobody else's memory may say that an image shows what was asked for."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gems.errors import InputError
from gems.files import MIN_SECRET, own_secret
from gems.paths import home

__all__ = ["is_own_note", "signed", "solved_note"]

_VARIABLE: Final = "GEMS_REUSE_SECRET"
"""Holds the secret of machines that trust each other's notes."""


def solved_note(namespace: Sequence[str], key: str, run: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The note that a run has solved the prompt with this key, and what was remembered of the run.

    Raises:
        InputError: There is no secret to sign it with.
    """
    return signed(namespace, key, {"run": run, "sha256": _digest(content)})


def signed(namespace: Sequence[str], key: str, note: Mapping[str, Any]) -> dict[str, Any]:
    """A note as one of this machine's; errors as for ``solved_note``."""
    return {**note, "signature": _signature(namespace, key, note)}


def is_own_note(namespace: Sequence[str], key: str, note: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
    """Whether this machine wrote the note, here and of this run; errors as for ``solved_note``."""
    signature = note.get("signature")
    return (
        isinstance(signature, str)
        and signature.isascii()
        and hmac.compare_digest(signature, _signature(namespace, key, note))
        and note.get("sha256") == _digest(content)  # an import may have put another run in its place
    )


def _signature(namespace: Sequence[str], key: str, note: Mapping[str, Any]) -> str:
    facts = json.dumps(["gems solved", *namespace, key, note.get("run"), note.get("sha256")])
    return hmac.digest(_secret().encode(), facts.encode(), "sha256").hex()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _secret() -> str:
    """The operator's secret, or else that of the home folder."""
    secret = os.environ.get(_VARIABLE, "").strip()
    if secret and len(secret) < MIN_SECRET:
        raise InputError(f"{_VARIABLE} has {len(secret)} characters: give it at least {MIN_SECRET}")
    return secret or own_secret(home() / "secret", "makes --reuse forget which prompts are solved")
