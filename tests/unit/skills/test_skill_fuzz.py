# ruff: noqa: E501, ISC004 - other people's files, line for line
"""For any content of a SKILL.md, the loader returns a usable skill or a reason."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from gems.skills.format import UnusableError, read_skill
from gems.skills.loader import load_skills
from gems.skills.tools import reference_tool, skill_tools

pytestmark = pytest.mark.timeout(60)
"""A file that the reader never finishes ends the test."""

GOOD = (
    "---\nname: lamp-light\ndescription: Use when the wish has lamps. Not when it has none.\nlicense: MIT\nmetadata:\n"
    "  author: someone\n  gems-examples: |\n    a lamp on a desk\n    two lanterns\n  gems-checks: |\n"
    "    object: Is there a lamp in the image?\n---\n\n# Lamps\n\n1. Name the lamp.\n2. Name its light: `{place}`.\n",
    "# Skill: Night\n\n## Description\n\nUse at night.\n\n## Instructions\n\n1. Dark.\n",
    '---\nname: "x"\ndescription: >-\n  Folded\n  text.\nallowed-tools: [Read, "Bash(git:*)"]\nmetadata: {"a": {"b": [1, 2]}}\n---\nBody\n',
)
SPECIALS = (
    "---\n", "...\n", ": ", "- ", "[", "]", "{", "}", "&a ", "*a", "!!python/object:os.system ", "!!binary ", "? ", "| \n",
    "> \n", "%YAML 1.2\n", "<<: *a\n", "\t", "\0", "\x1b[31m", "\u202e", "\u200b", "\ufeff", "\u2028", "\x85", "\ud7ff",
    "'", '"', "# ", "name: ", "description: ", "metadata:\n", "0x1F", "2020-01-01", "~", "null", "yes", "1e999", "=", "@", "`",
)  # fmt: skip


def flip(rng: random.Random, data: bytes) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    return bytes(flipped)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def shuffle(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def repeat(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    return b"".join([*lines[:at], lines[at] * rng.randint(2, 200), *lines[at + 1 :]])


def drop(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(line for line in lines if rng.random() > 0.2)


def insert(rng: random.Random, data: bytes) -> bytes:
    text = data.decode()
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(SPECIALS) * rng.randint(1, 3) + text[at:]
    return text.encode("utf-8", "surrogatepass")


def scribble(rng: random.Random, data: bytes) -> bytes:
    text = "".join(
        chr(rng.choice((rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x10000)))) for _ in range(60)
    )
    lines = data.decode().splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines)), text + "\n")
    return "".join(lines).encode("utf-8", "surrogatepass")


def ends(rng: random.Random, data: bytes) -> bytes:
    return b"".join(line.rstrip(b"\n") + rng.choice((b"\n", b"\r\n", b"\r")) for line in data.splitlines(keepends=True))


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(flip, cut, shuffle, repeat, drop, insert, scribble, ends),
)


def try_one(folder: Path, data: bytes) -> bool:
    """Whether the text gives a skill. Fails the test unless it gives a skill or a reason."""
    (folder / "SKILL.md").write_bytes(data)
    reason = ""
    try:
        skill, odd = read_skill(folder)
    except UnusableError as error:
        reason = str(error) or "none"
    if reason:
        assert reason != "none"
        assert "\n" not in reason
        return False
    assert skill.name.isascii()
    assert skill.name == skill.name.lower()
    assert 1 <= len(skill.name) <= 64
    assert 1 <= len(skill.description) <= 1024
    assert not [c for c in skill.description if unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert skill.body.strip()
    assert all("\n" not in note for note in odd)
    [tool] = skill_tools([skill])
    tool.invoke({}).encode()
    reference_tool([skill])
    return True


@pytest.mark.parametrize("seed", range(4))
def test_mutations_of_good_skills(tmp_path: Path, seed: int) -> None:
    rng, loaded = random.Random(seed), 0
    folder = tmp_path / "lamp-light"
    folder.mkdir()
    for _ in range(600):
        data = rng.choice(GOOD).encode()
        for _ in range(rng.randint(1, 3)):
            try:
                data = rng.choice(MUTATIONS)(rng, data) or b"\n"
            except UnicodeDecodeError:
                continue
        loaded += try_one(folder, data)
    assert 60 < loaded < 540, "the mutations must produce both skills and refusals"


@pytest.mark.parametrize(
    "head",
    [
        "a: " + "[" * 5000,
        "a: " + "{a: " * 3000,
        "".join(f"{' ' * i}a{i}:\n" for i in range(120)),
        "- " * 4000,
        "a: &x " + "y" * 5000 + "\nb: [*x" + ", *x" * 500 + "]",
        "? " * 3000,
        "a: !!python/object/apply:os.system ['true']\nname: n\ndescription: d",
        "a: 'never closed\nname: n",
        "a: |" + "\n  x" * 3000,
        "\ta: b",
        "[1, 2]: 3\n{a: b}: 4",
        "name: n\nname: m\ndescription: d\ndescription: e",
    ],
    ids=lambda head: head[:12].replace("\n", " "),
)
def test_malicious_headers(tmp_path: Path, head: str) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    try_one(folder, f"---\n{head}\n---\nBody\n".encode())


def test_a_good_skill_is_found_among_hundreds_of_broken_ones(tmp_path: Path) -> None:
    rng = random.Random(9)
    for i in range(300):
        (tmp_path / f"broken-{i}").mkdir()
        data = insert(rng, cut(rng, rng.choice(GOOD).encode()) or b"\n")
        (tmp_path / f"broken-{i}" / "SKILL.md").write_bytes(data)
    (tmp_path / "lamp-light").mkdir()
    (tmp_path / "lamp-light" / "SKILL.md").write_text(GOOD[0])
    library = load_skills(tmp_path, builtin=False)
    assert library.skills["lamp-light"].path.parent.name == "lamp-light"
    assert library.problems
