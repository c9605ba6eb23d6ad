from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langgraph.store.memory import InMemoryStore

from gems.graph.state import Attempt, GemsState, ImageRef, Requirement, Usage, Verdict
from gems.memory.embedder import init_embedder
from gems.memory.store import FaissStore
from gems.memory.trajectory import Trajectory, recall, remember


def state(prompt: str, answers: str) -> GemsState:
    """One attempt whose verdicts are given as letters: y, n."""
    requirements = [Requirement(id=f"r{i}", question=f"Question {i}?", kind="count") for i in range(len(answers))]
    verdicts = tuple(
        Verdict(requirement_id=f"r{i}", answer="yes" if a == "y" else "no", confidence=0.9)
        for i, a in enumerate(answers)
    )
    image = ImageRef(uri="file:///x.png", sha256="0" * 64, width=8, height=8)
    attempt = Attempt(
        round=1,
        candidate=0,
        prompt=f"better {prompt}",
        seed=1,
        image=image,
        verdicts=verdicts,
        experience="say exactly",
    )
    return GemsState(
        prompt=prompt,
        requirements=requirements,
        attempts=[attempt],
        skills=["counting"],
        outcome="solved",
        usage=Usage(images=1),
    )


def test_a_trajectory_keeps_facts_and_experience() -> None:
    past = Trajectory.from_state(state("two cats", "yn"), mllm="pocket", generator="pocket")
    assert (past.prompt, past.best_prompt, past.solved) == ("two cats", "better two cats", False)
    assert past.failed == ["Question 1?"]
    assert past.experience == "say exactly"
    assert Trajectory.model_validate(past.model_dump(mode="json")) == past


def test_a_run_without_an_image_is_no_trajectory() -> None:
    empty: Any = {**state("x", "y"), "attempts": []}
    with pytest.raises(ValueError, match="without an image"):
        Trajectory.from_state(empty, mllm="m", generator="g")


def test_recall_is_by_meaning_above_a_floor_and_per_user(tmp_path: Path) -> None:
    store = FaissStore(tmp_path, embedder=init_embedder())
    for i, prompt in enumerate(("three blue cars", "two blue trucks", "a violin", "three blue cars")):
        user = "eve" if i == 3 else "adam"
        remember(store, user, f"run{i}", Trajectory.from_state(state(prompt, "y"), mllm="m", generator="g"))
    found = recall(store, "adam", "three green cars", 5)
    assert found[0].prompt == "three blue cars"
    assert "a violin" not in [m.prompt for m in found]
    assert {m.key for m in found} <= {"run0", "run1"}
    assert [m.key for m in recall(store, "eve", "three green cars", 5)] == ["run3"]
    assert recall(store, "adam", "three green cars", 0) == []
    store.close()


def test_remembering_twice_is_remembering_once(tmp_path: Path) -> None:
    store = FaissStore(tmp_path, embedder=init_embedder())
    past = Trajectory.from_state(state("three blue cars", "y"), mllm="m", generator="g")
    remember(store, "adam", "run", past)
    remember(store, "adam", "run", past)
    assert len(recall(store, "adam", "three blue cars", 5)) == 1
    store.close()


def test_a_store_without_an_index_recalls_nothing() -> None:
    store = InMemoryStore()
    remember(store, "adam", "run", Trajectory.from_state(state("cars", "y"), mllm="m", generator="g"))
    assert recall(store, "adam", "cars", 3) == []
