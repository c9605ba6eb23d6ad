"""Puts data between tags in a chat model's prompt, so that it is told from instructions."""

from __future__ import annotations

import html

__all__ = ["fence"]


def fence(tag: str, text: str) -> str:
    """Put data between tags, escaped so that nothing inside can close them: what is fenced is never an instruction."""
    return f"<{tag}>\n{html.escape(text, quote=False)}\n</{tag}>"
