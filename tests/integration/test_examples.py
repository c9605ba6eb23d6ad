"""The examples as a newcomer runs them: offline, with the built-in replacement for a language model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forked
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def size_of(image: Path | str) -> tuple[int, int]:
    with Image.open(image) as picture:
        picture.load()
        return picture.size


def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    deprecated = ["-W", "error::DeprecationWarning:__main__"]
    return forked.run([sys.executable, *deprecated, EXAMPLES / name, *arguments], cwd=cwd)


@pytest.mark.slow
def test_the_story_illustrator_draws_four_scenes(tmp_path: Path) -> None:
    result = run("story_illustrator.py", "a day in the country", "--out", "story", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sum(line.startswith("scene ") for line in result.stdout.splitlines()) == 4
    page = (tmp_path / "story" / "story.html").read_text()
    assert "a day in the country" in page
    assert page.count("<img ") == 4
    pictures = [tmp_path / "story" / f"scene-{n}.png" for n in (1, 2, 3, 4)]
    assert [size_of(picture) for picture in pictures] == [(512, 512)] * 4
    assert len({picture.read_bytes() for picture in pictures}) == 4


@pytest.mark.slow
def test_the_supervisor_uses_both_agents(tmp_path: Path) -> None:
    result = run("supervisor.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:3] == ["supervisor: writer", "supervisor: illustrator", "supervisor: end"]
    image = lines[-1].removeprefix("image: file://")
    assert size_of(image) == (512, 512)


@pytest.mark.slow
def test_the_assistant_draws_by_tool(tmp_path: Path) -> None:
    result = run("tool_assistant.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    images = [line.split("file://")[1] for line in result.stdout.splitlines() if line.startswith("success: ")]
    assert len(set(images)) == 2
    assert all(size_of(image) == (512, 512) for image in images)
    assert "Both are drawn" in result.stdout


@pytest.mark.parametrize("name", ["story_illustrator.py", "supervisor.py", "tool_assistant.py"])
def test_each_example_has_help(name: str, tmp_path: Path) -> None:
    result = run(name, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "--mllm" in result.stdout
    assert "GEMS" in result.stdout


def test_a_bad_setting_gives_a_one_line_error(tmp_path: Path) -> None:
    result = run("supervisor.py", "--seed", "-1", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: the setting seed")
    assert "Traceback" not in result.stderr
