"""The release check copies the same files as ``COPY . .`` and detects a wheel that lacks a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from release_check import contents, is_ignored

PATTERNS = ["docs", "*.egg-info", "**/__pycache__", "src/notes"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("docs/index.md", True),
        ("src/docs/index.md", False),
        ("gems.egg-info/PKG-INFO", True),
        ("src/gems.egg-info/PKG-INFO", False),
        ("src/gems/__pycache__/x.pyc", True),
        ("src/notes/today.md", True),
        ("notes/today.md", False),
        ("pyproject.toml", False),
    ],
)
def test_patterns_match_from_the_root_unless_they_say_otherwise(path: str, expected: bool) -> None:
    assert is_ignored(path, PATTERNS) is expected


def test_wheels_are_compared_by_their_files_and_not_by_the_list_of_them(tmp_path: Path) -> None:
    wheels = []
    for number, names in enumerate((["gems/a.py", "gems/b.py"], ["gems/a.py"])):
        wheels.append(tmp_path / f"{number}.whl")
        with zipfile.ZipFile(wheels[-1], "w") as archive:
            for name in names:
                archive.writestr(name, "x = 1\n")
            archive.writestr("gems-1.dist-info/RECORD", ",".join(names))
    whole, partial = map(contents, wheels)
    assert set(whole) - set(partial) == {"gems/b.py"}
    assert whole["gems/a.py"] == partial["gems/a.py"]
