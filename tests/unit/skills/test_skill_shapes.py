# ruff: noqa: E501, ISC004 - other people's files, line for line
"""Skills in the formats found in public collections, with our own content.

Each format was seen in a real SKILL.md, but nothing is copied. The ids name the source or the feature.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gems.skills.format import Skill, UnusableError, read_skill
from gems.skills.loader import load_skills

LONG = "Draws maps. " + "Use it for islands, coasts, old towns and imagined countries of every kind. " * 20


def write(folder: Path, text: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SKILL.md").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


SHAPES: list[tuple[str, str, str, str, str, int]] = [
    # format; folder; text; loaded name; start of the description; number of problems
    (
        "anthropics/skills comfyui-integration: a plain head, headings, fenced code and tables in the body",
        "node-graphs",
        "---\nname: node-graphs\ndescription: Wires node graphs. Use when a graph is asked for.\n---\n\n# Graphs\n\n"
        '```json\n{"1": {"class_type": "Load"}}\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n',
        "node-graphs",
        "Wires node graphs. Use when",
        0,
    ),
    (
        "anthropics/skills ai-advisor-workflow: a name in title case, Japanese, lists and versions in the head",
        "poster-helper",
        "---\nname: Poster Helper\nversion: 1.0.0\ndescription: 展覧会のポスターを描くときに使います\nauthor: someone\n"
        "tags: [poster, layout]\ndependencies:\n  - color-picker\n  - type-setter\n---\n\n# 概要\n文字は大きく。\n",
        "poster-helper",
        "展覧会のポスター",
        1,
    ),
    (
        "anthropics/skills ponytail: a folded description with quotes, arrows and a rule in the body",
        "plain",
        '---\nname: plain\ndescription: >\n  Plain style: sketch → ink → wash.\n  Use when the user says "plain", "/plain"\n'
        "  or asks for less.\n---\n\n# Plain\n\nBe plain.\n\n---\n\n_After an idea of others._\n",
        "plain",
        'Plain style: sketch → ink → wash. Use when the user says "plain", "/plain" or asks for less.',
        0,
    ),
    (
        "openclaw collections: metadata as one line of JSON with emoji, a home page with a colon",
        "weather-scenes",
        "---\nname: weather-scenes\ndescription: Draws the weather of any city (no key needed).\n"
        'homepage: https://example.org/:help\nmetadata: {"bot":{"emoji":"🌤️","requires":{"bins":["curl"]}}}\n---\n\nSun.\n',
        "weather-scenes",
        "Draws the weather",
        0,
    ),
    (
        "browser skills: nested metadata with lists, booleans and numbers",
        "filter-shelf",
        "---\nname: filter-shelf\ndescription: Lays out a shelf.\nversion: 0.1.0\nallowed-tools: [fill, click]\n"
        'metadata:\n  applies_to: any\n  url_patterns: ["*"]\n  cost:\n    deterministic_only: false\n    calls: 2\n---\n\nShelf.\n',
        "filter-shelf",
        "Lays out a shelf.",
        0,
    ),
    (
        "slash commands: no name at all, an argument hint in brackets",
        "audit-colours",
        '---\ndescription: Audits colours.\nargument-hint: "[focus]"\nallowed-tools: Read, Bash(npm:*)\n---\n\nLook: $ARGUMENTS\n',
        "audit-colours",
        "Audits colours.",
        1,
    ),
    (
        "plugin commands: a name with a namespace before a colon",
        "prototype",
        "---\nname: cap:prototype\ndescription: Makes a first draft.\n---\n\nDraft it.\n",
        "cap-prototype",
        "Makes a first draft.",
        1,
    ),
    (
        "skills of several languages in one description, with triggers as a list",
        "design-doc",
        "---\nname: design-doc\ndescription: Use when the user wants a plan / 設計図 for a picture. Triggers on 「図を描いて」.\n"
        'triggers:\n  - "図"\n  - "plan"\n---\n\n# 設計\n描く。\n',
        "design-doc",
        "Use when the user wants a plan / 設計図",
        0,
    ),
    (
        "Chinese skills: a Chinese name, which no tool can have",
        "shuimo",
        "---\nname: 水墨画\ndescription: 当用户想要水墨画时使用。\n---\n\n# 水墨\n留白。\n",
        "shuimo",
        "当用户想要水墨画时使用。",
        1,
    ),
    (
        "hand-written heads: colons in an unquoted description",
        "lighting-notes",
        "---\nname: lighting-notes\ndescription: Lighting: use it when light matters, e.g.: dusk\n---\n\nLight.\n",
        "lighting-notes",
        "Lighting: use it when light matters, e.g.: dusk",
        1,
    ),
    (
        "a literal block with triggers on lines of their own",
        "skill-making",
        '---\nname: skill-making\ndescription: |\n  Makes borders.\n  Use for frames.\n  Triggers: "border", "frame".\n'
        'license: MIT\nmetadata:\n  author: someone\n  version: "1.0.0"\n---\n\n# Borders\n',
        "skill-making",
        'Makes borders. Use for frames. Triggers: "border", "frame".',
        0,
    ),
    (
        "descriptions far beyond the format's limit",
        "maps",
        f"---\nname: maps\ndescription: {LONG}\n---\n\nMaps.\n",
        "maps",
        "Draws maps. Use it for islands",
        1,
    ),
    (
        "names in capitals or with underscores, quoted",
        "Pixel_Art",
        "---\nname: \"Pixel_Art\"\ndescription: 'Pixels, 8 bit.'\ncompatibility: any\n---\n\nFew colours.\n",
        "pixel-art",
        "Pixels, 8 bit.",
        1,
    ),
    (
        "comments and empty fields in the head",
        "empty-fields",
        "---\n# who it is\nname: empty-fields   # the same as the folder\ndescription: Says little.\nglobs:\n"
        "alwaysApply: false\n---\n\nLittle.\n",
        "empty-fields",
        "Says little.",
        0,
    ),
    (
        "bodies with XML tags, template braces and shell substitutions, which are never run",
        "templated",
        "---\nname: templated\ndescription: Fills in.\n---\n\n<important>{{ role }}</important>\n!`touch /tmp/never`\n{% for x in y %}\n",
        "templated",
        "Fills in.",
        0,
    ),
]


@pytest.mark.parametrize(
    ("folder", "text", "name", "description", "odd"), [s[1:] for s in SHAPES], ids=[s[0].split(":")[0] for s in SHAPES]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
def test_it_loads(
    tmp_path: Path, folder: str, text: str, name: str, description: str, odd: int, ends: str, mark: bytes
) -> None:
    skill, notes = read_skill(write(tmp_path / folder, mark + text.replace("\n", ends).encode()))
    assert skill.name == name
    assert skill.description.startswith(description)
    assert len(skill.description) <= 1024
    assert skill.body
    assert "\r" not in skill.body
    assert len(notes) == odd, notes


def test_the_oldest_form_with_other_sections(tmp_path: Path) -> None:
    text = (
        "# Skill: Mood Boards\n\nWritten long ago.\n\n## Description\n\nUse for\nmood boards.\n\n## Instructions\n\n"
        "1. Collect.\n\n### Notes\n2. Arrange.\n\n## See also\n\nNothing.\n"
    )
    skill, odd = read_skill(write(tmp_path / "mood-boards", text))
    assert (skill.name, skill.description) == ("mood-boards", "Use for mood boards.")
    assert skill.body == "1. Collect.\n\n### Notes\n2. Arrange."
    assert len(odd) == 1


def test_folders_beside_it_as_collections_have_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", "---\nname: kit\ndescription: A kit.\n---\nSee references/a.md.\n")
    for file in ("references/a.md", "references/deep/b.md", "scripts/run.py", "assets/logo.png", "FORMS.md"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("x")
    (folder / "LICENSE.txt").write_text("x")
    skill, odd = read_skill(folder)
    assert skill.references == ("FORMS.md", "references/a.md")
    assert skill.scripts
    assert odd == []


REFUSED: list[tuple[str, str | bytes, str]] = [
    ("a rule file without a head", "# Rules\n\nBe good.\n", "does not begin with YAML"),
    ("a head that never ends", "---\nname: x\ndescription: y\n\nBody\n", "does not begin with YAML"),
    ("no description", "---\nname: x\n---\nBody\n", "no description"),
    ("an empty description", "---\nname: x\ndescription: ''\n---\nBody\n", "no description"),
    ("a description that is a list", "---\nname: x\ndescription: [a, b]\n---\nBody\n", "description is not text"),
    ("an empty body", "---\nname: x\ndescription: y\n---\n\n", "no text beyond its description"),
    ("a list for a head", "---\n- name\n- x\n---\nBody\n", "not a mapping"),
    ("tabs for indentation", "---\nname: x\nmetadata:\n\tauthor: me\n---\nBody\n", "YAML is broken"),
    ("brackets that never close", "---\nname: [x\ndescription: y\n---\nBody\n", "YAML is broken"),
    ("another encoding", "---\nname: x\ndescription: é\n---\nBody\n".encode("latin-1"), "not UTF-8"),
    ("UTF-16", "---\nname: x\ndescription: y\n---\nBody\n".encode("utf-16"), "not UTF-8"),
    ("a picture by that name", b"\x89PNG\r\n\x1a\n" + bytes(64), "not UTF-8"),
    ("a very long head", "---\nname: x\ndescription: y\nnotes: " + "z" * 20_000 + "\n---\nBody\n", "longer than 16 KB"),
]


@pytest.mark.parametrize(("text", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_it_is_refused_with_a_reason(tmp_path: Path, text: str | bytes, reason: str) -> None:
    write(tmp_path / "x", text)
    with pytest.raises(UnusableError, match=reason) as error:
        read_skill(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_a_collection_of_all_of_them(tmp_path: Path) -> None:
    for _, folder, text, *_ in SHAPES:
        write(tmp_path / folder, text)
    for i, (_, text, _) in enumerate(REFUSED):
        write(tmp_path / f"refused-{i}", text)
    library = load_skills(tmp_path, builtin=False)
    assert set(library.skills) == {name for _, _, _, name, _, _ in SHAPES}
    assert len(library.problems) == len(REFUSED)
    assert all(isinstance(skill, Skill) for skill in library.skills.values())
