"""Server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gems.json_text import strict_json

__all__ = ["KEEP_ALIVE", "server_sent"]

KEEP_ALIVE = ": still here\n\n"
"""A comment, sent from time to time so that proxies do not close the connection."""


def server_sent(name: str, content: Mapping[str, Any]) -> str:
    """An event as text."""
    return f"event: {name}\ndata: {strict_json(content)}\n\n"
