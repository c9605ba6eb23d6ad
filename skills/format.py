"""Reads one skill in the open Agent Skills format (agentskills.io): a folder with a SKILL.md.

SKILL.md is YAML between two lines of three dashes, with ``name`` and ``description``, then Markdown. Skills are written
by hand, for many programs: whatever can be understood is used, with a note about oddities; the rest is refused with a
reason. A skill is text. Its scripts are never run, and nothing outside its folder is ever read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import yaml

from gems.files import read_regular
from gems.graph.state import Kind

__all__ = [
    "MAX_CHECKS",
    "MAX_SKILL_BYTES",
    "QUOTED",
    "RESERVED",
    "Check",
    "Skill",
    "UnusableError",
    "read_skill",
    "read_text",
    "skill_file",
    "slug",
]

MAX_SKILL_BYTES: Final = 64 * 1024
"""Bytes of SKILL.md, and of each reference. The format recommends less than a tenth of this."""
MAX_CHECKS: Final = 3
QUOTED: Final = "{quoted}"
"""Stands in a check's question for each text between quotation marks in the prompt."""
_MAX_HEAD: Final = 16 * 1024
_MAX_NESTING: Final = 64
_MAX_NAME: Final = 64
_MAX_DESCRIPTION: Final = 1024
_MAX_EXAMPLES: Final = 12
_MAX_REFERENCES: Final = 50
_REFERENCE: Final = re.compile(r"(references/)?\w[\w .,+()-]{0,99}")
"""Matches names of files that can stand in a sentence."""
_NO_REFERENCES: Final = frozenset({"skill.md", "license.md", "license.txt"})
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
RESERVED: Final = frozenset({"plan", "requirements", "verdicts", "refinement", "read-reference"})
"""Names of the planner's other tools and of the forms of the other roles."""
_DOCUMENT: Final = re.compile(
    r"\A\s*---[ \t]*\n(?P<head>.*?)^(?:---|\.\.\.)[ \t]*$\n?(?P<body>.*)\Z", re.DOTALL | re.MULTILINE
)
_OLDER: Final = re.compile(r"\A\s*# +Skill:[ \t]*(?P<name>[^\n]*)\n(?P<rest>.*)\Z", re.DOTALL | re.IGNORECASE)
_SECTION: Final = re.compile(r"^## +(?P<title>[^\n]*)$\n?(?P<text>.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_PLAIN_LINE: Final = re.compile(r"(?P<key>[A-Za-z][\w-]*):[ \t]+(?P<value>[^\s|>\"'\[{&!#].*)")
_CHECK: Final = re.compile(rf"(?P<kind>{'|'.join(get_args(Kind))}): *(?P<question>\S.{{3,290}}\?)")


class UnusableError(Exception):
    """Why a skill, or a part of it, cannot be used, as a clause that follows "skipped, "."""


@dataclass(frozen=True, slots=True)
class Check:
    """A requirement that a skill adds for the verifier. ``{quoted}`` stands for each quoted text in the prompt."""

    kind: Kind
    question: str


@dataclass(frozen=True, slots=True)
class Skill:
    """One skill: the planner sees its name and description at first, and reads its body on demand."""

    name: str
    """Also its name as a tool: at most 64 lower-case letters, digits and hyphens."""
    description: str
    """One line of at most 1,024 characters."""
    body: str
    path: Path
    """The path of its SKILL.md."""
    origin: str = "given"
    """Where it comes from: built in, learned, user, project or given."""
    examples: tuple[str, ...] = ()
    """Prompts that it is for; they help to find it among hundreds of skills."""
    checks: tuple[Check, ...] = ()
    references: tuple[str, ...] = ()
    """Files that can be read on demand, relative to the skill's folder."""
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    scripts: bool = False
    """Whether it has scripts. They are never run."""


def read_skill(folder: Path, origin: str = "given") -> tuple[Skill, list[str]]:
    """The skill in a folder, and its oddities, a line each.

    Raises:
        UnusableError: It cannot be read, or has no description or text.
    """
    path = skill_file(folder)
    if path is None:
        raise UnusableError("it holds no SKILL.md")
    text = read_text(path, within=folder, limit=MAX_SKILL_BYTES)
    odd: list[str] = []
    head, body = _split(text, odd)
    name = _name(head.get("name"), folder.name, odd)
    description = _description(head.get("description"), odd)
    if not body.strip():
        raise UnusableError("it has no text beyond its description")
    raw = head.get("metadata")
    metadata = {k: v for k, v in raw.items() if isinstance(v, str)} if isinstance(raw, dict) else {}
    skill = Skill(
        name=name,
        description=description,
        body=body.strip(),
        path=path,
        origin=origin,
        examples=_examples(metadata.get("gems-examples", ""), odd),
        checks=_checks(metadata.get("gems-checks", ""), odd),
        references=_references(folder, odd)
        if origin != "learned"
        else (),  # the files beside it are evidence for people
        metadata=metadata,
        scripts=(folder / "scripts").is_dir(),
    )
    return skill, odd


def read_text(path: Path, *, within: Path, limit: int) -> str:
    """A file of a skill as text, with every line ending in a line feed.

    Raises:
        UnusableError: It is not a regular file inside the folder, is too large, or is not UTF-8 text.
    """
    try:
        content = read_regular(path, within=within, limit=limit)
    except ValueError as error:  # a zero byte in a name
        raise UnusableError(f"{path.name} cannot be read ({error})") from error
    except OSError as error:
        reasons = {errno.ELOOP: "lies outside the skill's folder", errno.EFBIG: f"is larger than {limit // 1024} KB"}
        reasons[errno.EINVAL] = "is not a file"
        reason = reasons.get(error.errno or 0, f"cannot be read ({error.strerror})")
        raise UnusableError(f"{path.name} {reason}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableError(f"{path.name} is not UTF-8 text") from error
    if "\0" in text:
        raise UnusableError(f"{path.name} is not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def skill_file(folder: Path) -> Path | None:
    """The path in a folder that has the name of a skill's file, of whatever type it is; None if there is none."""
    return next((folder / name for name in ("SKILL.md", "skill.md") if os.path.lexists(folder / name)), None)


# --- front matter ---------------------------------------------------------------------------------------------------


def _split(text: str, odd: list[str]) -> tuple[dict[str, Any], str]:
    """The fields of the front matter and the body, in either form of the format."""
    if document := _DOCUMENT.match(text):
        return _head(document["head"], odd), document["body"]
    if older := _OLDER.match(text):
        sections = {s["title"].strip().lower(): s["text"].strip() for s in _SECTION.finditer(older["rest"])}
        return {"name": older["name"], "description": sections.get("description")}, sections.get("instructions", "")
    raise UnusableError("SKILL.md does not begin with YAML between two lines of ---")


def _head(text: str, odd: list[str]) -> dict[str, Any]:
    if len(text) > _MAX_HEAD:
        raise UnusableError(f"its YAML is longer than {_MAX_HEAD // 1024} KB")
    try:
        head = _load(text)
    except yaml.YAMLError as error:
        quoted = "\n".join(map(_quoted, text.splitlines()))
        try:
            head = _load(quoted)
        except yaml.YAMLError:
            raise UnusableError(f"its YAML is broken ({_short(error)})") from error
        odd.append(f"its YAML is broken ({_short(error)}), and was read as plain text")
    if not isinstance(head, dict):
        raise UnusableError("its YAML is not a mapping")
    return head


def _load(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a BaseLoader, which makes nothing but strings
    except (ValueError, RecursionError, OverflowError, TypeError) as error:  # unhashable keys, endless nesting
        raise yaml.YAMLError(str(error) or type(error).__name__) from None


class _Loader(yaml.BaseLoader):
    """Reads every value as a string, as the format's own validator does.

    Aliases are refused: they can explode. So is deep nesting: the scanner looks at every open bracket again for each
    token that follows.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        if self.flow_level >= _MAX_NESTING:
            raise yaml.YAMLError("its brackets are nested too deep")
        super().fetch_flow_collection_start(token_class)


def _quoted(line: str) -> str:
    """A line ``key: plain value`` with its value in quotes, because people write colons into descriptions."""
    plain = _PLAIN_LINE.fullmatch(line)
    return f"{plain['key']}: {json.dumps(plain['value'], ensure_ascii=False)}" if plain else line


def _short(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())[:120]


# --- fields ---------------------------------------------------------------------------------------------------------


def _name(declared: Any, folder: str, odd: list[str]) -> str:
    """A name that a tool can have: the declared one, or the nearest to it."""
    title = _one_line(declared) if isinstance(declared, str) else ""
    if not title:
        odd.append("it has no name; it is called after its folder")
    own = slug(title or folder)
    digest = hashlib.sha256((title or folder).encode("utf-8", "replace")).hexdigest()
    name = own or slug(folder) or f"skill-{digest[:8]}"
    if title and own is None:
        odd.append(f"its name {title[:80]!r} has letters beyond a-z; it is called {name}")
    if name in RESERVED:
        raise UnusableError(f"{name!r} is the name of one of the planner's own tools")
    if title and title != name and title.isascii():
        odd.append(
            f"its name {title[:80]!r} is not 1 to 64 lower-case letters, digits and hyphens; it is called {name}"
        )
    elif title == name != folder:
        odd.append(f"its name {name!r} is not its folder's, {folder[:80]!r}")
    return name


def slug(text: str) -> str | None:
    """The text in lower-case letters, digits and hyphens; None if it has other letters, which may look like these."""
    if any(not c.isascii() and unicodedata.category(c)[0] in "LNM" for c in text):
        return None
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_MAX_NAME].strip("-")
    return name if _NAME.fullmatch(name) else None


def _description(declared: Any, odd: list[str]) -> str:
    if declared is not None and not isinstance(declared, str):
        raise UnusableError("its description is not text")
    text = _one_line(declared or "")
    if not text:
        raise UnusableError("it has no description")
    if len(text) > _MAX_DESCRIPTION:
        odd.append(f"its description is longer than {_MAX_DESCRIPTION} characters, and was cut")
        text = text[: _MAX_DESCRIPTION - 4].rstrip() + " ..."
    return text


def _one_line(text: str) -> str:
    """The text without line breaks and without invisible characters."""
    return " ".join("".join(" " if c.isspace() else c for c in text if c.isspace() or _is_visible(c)).split())


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn")


def _examples(text: str, odd: list[str]) -> tuple[str, ...]:
    lines = [line for line in map(_one_line, text.splitlines()) if line]
    short = [line for line in lines if len(line) <= 200][:_MAX_EXAMPLES]
    if len(short) < len(lines):
        odd.append(f"of its examples, {len(lines) - len(short)} were left out: too long or too many")
    return tuple(short)


def _checks(text: str, odd: list[str]) -> tuple[Check, ...]:
    checks: list[Check] = []
    for line in filter(None, map(_one_line, text.splitlines())):
        if (match := _CHECK.fullmatch(line)) and len(checks) < MAX_CHECKS:
            checks.append(Check(match["kind"], match["question"]))  # type: ignore[arg-type]
        else:
            odd.append(f"its check {line[:60]!r} was left out: at most {MAX_CHECKS}, each KIND: QUESTION?")
    return tuple(checks)


def _references(folder: Path, odd: list[str]) -> tuple[str, ...]:
    """Text files beside SKILL.md and in references/. They are checked when they are read."""
    files, inside = [*folder.glob("*")], folder / "references"
    if os.path.realpath(inside).startswith(
        f"{os.path.realpath(folder)}{os.sep}"
    ):  # names of other files say something too
        files += inside.glob("*")
    texts = [f for f in files if f.suffix.lower() in (".md", ".txt") and f.name.lower() not in _NO_REFERENCES]
    names = sorted(f.relative_to(folder).as_posix() for f in texts)
    usable = [name for name in names if _REFERENCE.fullmatch(name)][:_MAX_REFERENCES]
    if len(usable) < len(names):
        odd.append(f"of its references, {len(names) - len(usable)} were left out: too many, or odd names")
    return tuple(usable)
