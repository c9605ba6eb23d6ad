"""The extras in error messages can be installed as they are named, from a clone and from a wheel."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gems.extras import DISTRIBUTION, how_to_install, packages_of

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_the_name_is_that_of_the_project() -> None:
    assert PROJECT["name"] == DISTRIBUTION


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_names_the_packages_of_an_extra(extra: str) -> None:
    expected = {Requirement(text).name for text in EXTRAS[extra]}
    assert {Requirement(text).name for text in packages_of(extra)} == expected
    command = how_to_install(extra).removesuffix(f" (the extra {extra!r})")
    pip, install, *packages = shlex.split(command)
    assert (pip, install) == ("pip", "install")
    assert {Requirement(text).name for text in packages} == expected
    assert DISTRIBUTION not in command, "no package index has it"


def test_no_other_file_names_the_distribution() -> None:
    """It is on no package index: neither the program nor the documentation may tell anybody to fetch it from one."""
    places = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py")]
    places += [path for name in ("graph", "nodes", "skills", "memory") for path in ROOT.glob(f"{name}/**/*.py")]
    named = [path.name for path in places if re.search(rf"install\s+['\"]?{PROJECT['name']}", path.read_text())]
    named += [path.name for path in places if path.suffix == ".py" and PROJECT["name"] in path.read_text()]
    assert named == ["extras.py"]


def test_every_extra_in_the_program_exists() -> None:
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    extras = {name for text in sources for name in re.findall(r"how_to_install\(['\"](\w[\w-]*)['\"]\)", text)}
    assert extras
    assert extras <= EXTRAS.keys()
