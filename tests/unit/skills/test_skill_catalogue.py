"""Hundreds of skills: the planner's catalogue does not grow, and the right one is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.messages.utils import count_tokens_approximately
from skill_retrieval import measure

from gems.memory.embedder import init_embedder
from gems.skills.catalogue import CATALOGUE_TOKENS, MAX_OFFERED, offer
from gems.skills.format import Skill

WORDS = ("harbour", "glacier", "violin", "pottery", "airship", "orchard", "lantern", "castle", "desert", "aquarium")


def skill(name: str, description: str, *examples: str) -> Skill:
    return Skill(name=name, description=description, body="Do.", path=Path(name) / "SKILL.md", examples=examples)


def many(n: int) -> list[Skill]:
    """Skills for scenes, each of which no other is for."""
    made = []
    for i in range(n):
        a, b = WORDS[i % 10], WORDS[i // 10 % 10]
        words = f"Use when the wish shows the {a} of a {b}, number {i} of its kind. Not for others."
        made.append(skill(f"{a}-{b}-{i}", words))
    return made


class Untouched(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("a few skills are offered as they are")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("a few skills are offered as they are")


class Counting(Embeddings):
    """Counts what it is asked for; texts with the same first letter are alike."""

    def __init__(self, name: str = "counting") -> None:
        self.fingerprint, self.documents = name, 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.documents += len(texts)
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(letter == text[0]) for letter in "abcdefghijklmnopqrstuvwxyz"]


def cost(skills: list[Skill]) -> int:
    return count_tokens_approximately([f"{s.name} {s.description}" for s in skills])


def test_a_few_are_offered_whole_and_nothing_is_embedded() -> None:
    skills = many(MAX_OFFERED)
    assert offer(skills, "a harbour", Untouched) == skills
    assert offer([], "a harbour", Untouched) == []


def test_of_five_hundred_the_nearest_are_offered_in_their_order() -> None:
    hidden = skill("counting-things", "Use when the wish asks for a number.", "four birds on a wire", "a pair of mugs")
    skills = [*many(250), hidden, *many(500)[250:]]
    few = offer(skills[:20], "three gulls on a fence", init_embedder)
    offered = offer(skills, "three gulls on a fence", init_embedder)
    assert hidden in offered, "one of its examples is near to the wish"
    assert len(offered) == len(few) == MAX_OFFERED
    assert cost(offered) <= CATALOGUE_TOKENS
    assert [s.name for s in offered] == [s.name for s in skills if s in offered]
    assert skills[42].name in [s.name for s in offer(skills, "the violin of an airship, number 42", init_embedder)]


def test_among_five_hundred_the_right_skill_is_found() -> None:
    found = measure(500)
    assert found["skills"] == 500
    assert found["right_one_offered"] >= 0.95
    assert found["catalogue_tokens"]["mean"] <= found["catalogue_tokens_with_20"]["mean"]
    assert found["catalogue_tokens"]["most"] <= CATALOGUE_TOKENS


def test_long_descriptions_cost_places_never_room() -> None:
    skills = [skill(f"s{i}", "Use when " + "word " * 200) for i in range(40)]
    offered = offer(skills, "a word", Counting)
    assert 0 < len(offered) < MAX_OFFERED
    assert cost(offered) <= CATALOGUE_TOKENS


def test_what_a_skill_is_not_for_does_not_attract() -> None:
    wrong = skill("wide-views", "Use when the wish is a landscape. Not when it shows a portrait of a person.")
    right = skill("faces", "Use when the wish is a portrait of a person. Not when it is a landscape.")
    fillers = [skill(f"f{i}", f"Use when the wish is about tax form {i}.") for i in range(MAX_OFFERED)]
    found = offer([wrong, *fillers, right], "the portrait of a person", init_embedder)
    assert right in found


def test_vectors_are_kept_on_disk_for_the_next_process(own_home: Path) -> None:
    skills = many(40)
    first = Counting()
    offer(skills, "a harbour", lambda: first)
    assert first.documents == 40
    [kept] = (own_home / "cache").glob("skills-*.npy")
    second = Counting()
    offer(skills, "a harbour", lambda: second)
    assert second.documents == 0
    other = Counting("another embedder")
    offer(skills, "a harbour", lambda: other)
    assert other.documents == 40
    kept.write_bytes(kept.read_bytes()[:100])
    third = Counting()
    offer(skills, "a harbour", lambda: third)
    assert third.documents == 40, "a torn file is made again"
    assert len(np.load(kept)) == 40


def test_a_home_that_cannot_be_written_to_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GEMS_HOME", str(tmp_path / "file"))
    assert offer(many(40), "a harbour", Counting)
