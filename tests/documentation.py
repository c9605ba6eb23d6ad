"""Parses the documentation pages: code blocks with their marks, shell commands, links and headings.

A comment directly before a block tells the tests how to treat it. A block without a comment is run.

``<!-- not-run: REASON -->``
    The block is not run, only checked: imported names in Python, options on command lines.
``<!-- with-service -->``
    The block is run against a running service, whose address replaces ``http://127.0.0.1:8000``.
``<!-- file: NAME -->``
    The block is the content of that file, which later blocks of the page read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]

MARKS = ("not-run", "with-service", "file")
LANGUAGES = frozenset(
    {"css", "html", "ini", "json", "jsonl", "markdown", "mermaid", "python", "sh", "text", "toml", "yaml"}
)
"""The languages that a block may use. Tests would miss synonyms such as ``bash``, ``console`` or ``py``."""


class PageError(AssertionError):
    """A page contains an error, or something that the tests cannot check."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """The number of its first line of code, counted from 1."""
    language: str
    source: str
    mark: str
    argument: str
    """The text after the mark: the reason or the file's name."""

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A simple shell command."""

    words: tuple[str, ...]
    place: str
    redirect: str = ""
    """``>`` or ``>>``, if its output goes to a file."""
    target: str = ""
    """The file that receives its output."""

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Page:
    """A Markdown file of the repository."""

    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tokens(self) -> list[Token]:
        return MarkdownIt("gfm-like", {"linkify": False}).parse(self.text)

    def blocks(self) -> Iterator[Block]:
        """All blocks of code, in order, without Sphinx directives such as ``{toctree}``.

        Raises:
            PageError: A block is indented, its language is missing or unknown, or its mark is wrong.
        """
        for before, token in zip([None, *self.tokens], self.tokens, strict=False):
            if token.type == "code_block":
                raise PageError(f"{self.name}: indented code block; use a fence: {token.content!r}")
            if token.type != "fence" or token.info.startswith("{"):
                continue
            assert token.map is not None
            line = token.map[0] + 2
            if token.info not in LANGUAGES:
                fault = f"unknown language {token.info}" if token.info else "no language"
                raise PageError(f"{self.name}:{line}: {fault}; use {', '.join(sorted(LANGUAGES))}")
            yield Block(self.name, line, token.info, token.content, *self._mark(before, line))

    def _mark(self, before: Token | None, line: int) -> tuple[str, str]:
        if before is None or before.type != "html_block":
            return "", ""
        comment = re.fullmatch(r"<!--\s*([a-z-]+)(?::\s*(.*?))?\s*-->", before.content.strip(), re.DOTALL)
        if comment is None or comment[1] not in MARKS:
            raise PageError(f"{self.name}:{line}: {before.content.strip()!r} before the block is not a known mark")
        mark, argument = comment[1], comment[2] or ""
        if bool(argument) != (mark != "with-service"):
            raise PageError(f"{self.name}:{line}: {mark} {'takes no' if argument else 'needs an'} argument")
        return mark, argument

    def toctree(self) -> Iterator[str]:
        """The entries of its tables of contents: documents or patterns, relative to the page's folder."""
        for token in self.tokens:
            if token.type == "fence" and token.info == "{toctree}":
                lines = (line.strip() for line in token.content.splitlines())
                yield from (line for line in lines if line and not line.startswith(":"))

    def links(self) -> Iterator[str]:
        """The targets of its links and images."""
        for token in self.tokens:
            for child in token.children or ():
                if child.type == "link_open":
                    yield str(child.attrs["href"])
                elif child.type == "image":
                    yield str(child.attrs["src"])

    def anchors(self) -> set[str]:
        """The anchors that GitHub and MyST create for its headings."""
        texts = [
            "".join(child.content for child in after.children or () if child.type in ("text", "code_inline"))
            for token, after in zip(self.tokens, self.tokens[1:], strict=False)
            if token.type == "heading_open"
        ]
        return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def pages() -> list[Page]:
    """All pages for readers: the documentation, the README and the files beside it."""
    top = [ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    docs = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
    return [Page(path) for path in (*top, *docs) if path.exists()]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a shell block. Drops comments, joins continued lines, and splits at ``;`` and ``&&``.

    Raises:
        PageError: A line has a pipe or other syntax that the tests cannot run.
    """
    joined = ""
    for number, line in enumerate(block.source.splitlines(), start=block.line):
        if line.rstrip().endswith("\\"):
            joined += line.rstrip()[:-1]
            continue
        yield from _commands(joined + line, f"{block.page}:{number}")
        joined = ""


def _commands(line: str, place: str) -> Iterator[Command]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    redirect = target = ""
    for token in (*lexer, ";"):
        if token in (";", "&&"):
            if words:
                yield Command(tuple(words), place, redirect, target)
            words, redirect, target = [], "", ""
        elif token in (">", ">>"):
            redirect = token
        elif redirect and not target:
            target = token
        elif set(token) <= set("();<>|&"):
            raise PageError(f"{place}: a test cannot run {token!r}: {line.strip()}")
        else:
            words.append(token)
