"""What somebody tries first: a model by its name in Python, a word that the pocket models may not know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from forked import gems, gems_here

from gems import GemsContext, build_graph

pytestmark = pytest.mark.slow


def test_a_graph_takes_models_by_their_names() -> None:
    graph = build_graph(mllm="pocket", generator="pocket")
    context = GemsContext(memory=False, seed=3, max_rounds=1)
    result = graph.invoke({"prompt": "two red cars"}, context=context)
    assert result["outcome"]


def test_an_unknown_word_comes_with_near_ones_at_the_command_line(tmp_path: Path) -> None:
    result = gems_here("generate", "two red catz", "--out", tmp_path / "out", home=tmp_path / "home")
    assert result.returncode == 2
    # The planner runs beside the node that fails: its progress may come before the error.
    *progress, error = result.stderr.strip().splitlines()
    assert error.startswith("error: unknown word 'catz' (did you mean cat, cats?)")
    assert not [line for line in progress if "error" in line.lower() or "Traceback" in line]


def test_doctor_says_which_words_the_pocket_models_know(tmp_path: Path) -> None:
    text = gems("doctor", home=tmp_path / "home").stdout
    words = set(re.findall(r"\w+", text))
    assert words >= {"giraffe", "koala", "red", "wooden", "sparkling"}
