"""No running part can see the oracle's truth: none imports the evaluation, and without the truth runs are the same."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import forked
import pytest
from PIL import Image

import gems.graph
import gems.memory
import gems.models
import gems.nodes
import gems.skills
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import ImageRef
from gems.memory.image_store import ImageStore
from gems.models.generators import GeneratedImage
from gems.models.registry import init_image_generator

RUNNING = (gems.graph, gems.nodes, gems.skills, gems.memory, gems.models)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", RUNNING, ids=lambda p: str(p.__name__))
def test_no_running_part_imports_the_evaluation(package: Any) -> None:
    files = [f for folder in package.__path__ for f in Path(folder).rglob("*.py")]
    assert files
    for file in files:
        assert not [name for name in imported(file) if name.startswith("gems.evals")], file


class Stripped:
    """The pocket generator, which returns nothing but pixels."""

    name = "pocket"

    def __init__(self) -> None:
        self._inner = init_image_generator("pocket")
        self.fingerprint = self._inner.fingerprint
        self.edits = self._inner.edits

    def generate(self, requests: Any, *, on_step: Any = None) -> list[Any]:
        results = self._inner.generate(requests)
        return [
            GeneratedImage(m.request, Image.frombytes("RGB", m.image.size, m.image.convert("RGB").tobytes()))
            for m in results
            if isinstance(m, GeneratedImage)
        ]


class Bare(ImageStore):
    """An image store that keeps pixels without metadata."""

    def put(self, image: Image.Image, metadata: Mapping[str, str]) -> ImageRef:
        return super().put(image, {})


def run(**parts: Any) -> list[Any]:
    graph = build_graph(**parts)
    attempts_seen: list[Any] = []
    for seed, prompt in enumerate(("three cats to the left of a red dog", "six blue cars and five striped horses")):
        context = GemsContext(seed=seed, max_rounds=3, memory=False)
        state = graph.invoke({"prompt": prompt}, context=context)
        attempts_seen.append(
            (state["outcome"], [(a.prompt, a.seed, a.score, a.verdicts, a.experience) for a in state["attempts"]])
        )
    return attempts_seen


@pytest.mark.slow
def test_the_loop_does_the_same_on_images_without_their_truth(tmp_path: Path) -> None:
    full = run(images=ImageStore(tmp_path / "full"))
    assert any(len(attempts) > 1 for _, attempts in full), "the comparison must reach the refiner"
    assert run(generator=Stripped(), images=Bare(tmp_path / "bare")) == full


@pytest.mark.slow
def test_the_loop_runs_where_there_is_no_evaluation_at_all(tmp_path: Path) -> None:
    code = """
import sys
class NoEvals:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("gems.evals"):
            raise ImportError("there is no evaluation here")
sys.meta_path.insert(0, NoEvals())
for name in [name for name in sys.modules if name.startswith("gems.evals")]:
    del sys.modules[name]  # the server that forks this process has imported them
from gems import GemsContext, build_graph
state = build_graph().invoke({"prompt": "two red cars"}, context=GemsContext(seed=1, memory=False))
assert state["outcome"] and not [m for m in sys.modules if m.startswith("gems.evals")]
"""
    result = forked.run([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
