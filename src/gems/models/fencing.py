"""Marks data in a chat model's prompt with tags, to separate it from instructions."""

from __future__ import annotations

import html

__all__ = ["fence"]


def fence(tag: str, text: str) -> str:
    """The text between opening and closing tags, escaped so that nothing inside can close the tag."""
    return f"<{tag}>\n{html.escape(text, quote=False)}\n</{tag}>"
