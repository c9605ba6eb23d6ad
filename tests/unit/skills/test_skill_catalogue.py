"""With hundreds of skills, the planner's catalogue stays small and contains the right skill."""

from __future__ import annotations

import os
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


def make_skills(n: int) -> list[Skill]:
    """Skills that each cover a different scene."""
    skills = []
    for i in range(n):
        a, b = WORDS[i % 10], WORDS[i // 10 % 10]
        words = f"Use when the wish shows the {a} of a {b}, number {i} of its kind. Not for others."
        skills.append(skill(f"{a}-{b}-{i}", words))
    return skills


class UnusedEmbeddings(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("a few skills are offered without embedding")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("a few skills are offered without embedding")


class CountingEmbeddings(Embeddings):
    """Counts the embedded documents; texts with the same first letter are alike."""

    def __init__(self, name: str = "counting") -> None:
        self.fingerprint, self.documents = name, 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.documents += len(texts)
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(letter == text[0]) for letter in "abcdefghijklmnopqrstuvwxyz"]


def cost(skills: list[Skill]) -> int:
    return count_tokens_approximately([f"{s.name} {s.description}" for s in skills])


def test_a_few_skills_are_all_offered_without_embedding() -> None:
    skills = make_skills(MAX_OFFERED)
    assert offer(skills, "a harbour", UnusedEmbeddings) == skills
    assert offer([], "a harbour", UnusedEmbeddings) == []


@pytest.mark.slow
def test_of_two_hundred_skills_the_nearest_are_offered_in_order() -> None:
    hidden = skill("counting-things", "Use when the wish asks for a number.", "four birds on a wire", "a pair of mugs")
    skills = [*make_skills(100), hidden, *make_skills(200)[100:]]
    offered_few = offer(skills[:20], "three gulls on a fence", init_embedder)
    offered = offer(skills, "three gulls on a fence", init_embedder)
    assert hidden in offered, "one of its examples is near the prompt"
    assert len(offered) == len(offered_few) == MAX_OFFERED
    assert cost(offered) <= CATALOGUE_TOKENS
    assert [s.name for s in offered] == [s.name for s in skills if s in offered]
    assert skills[42].name in [s.name for s in offer(skills, "the violin of an airship, number 42", init_embedder)]


@pytest.mark.slow
def test_among_two_hundred_the_right_skill_is_found() -> None:
    measured = measure(200)
    assert measured["skills"] == 200
    assert measured["right_one_offered"] >= 0.95
    assert measured["catalogue_tokens"]["mean"] <= measured["catalogue_tokens_with_20"]["mean"]
    assert measured["catalogue_tokens"]["most"] <= CATALOGUE_TOKENS


def test_long_descriptions_reduce_the_number_of_skills_not_the_budget() -> None:
    skills = [skill(f"s{i}", "Use when " + "word " * 200) for i in range(40)]
    offered = offer(skills, "a word", CountingEmbeddings)
    assert 0 < len(offered) < MAX_OFFERED
    assert cost(offered) <= CATALOGUE_TOKENS


def test_the_exclusions_of_a_skill_do_not_attract_prompts() -> None:
    wrong = skill("wide-views", "Use when the wish is a landscape. Not when it shows a portrait of a person.")
    right = skill("faces", "Use when the wish is a portrait of a person. Not when it is a landscape.")
    fillers = [skill(f"f{i}", f"Use when the wish is about tax form {i}.") for i in range(MAX_OFFERED)]
    offered = offer([wrong, *fillers, right], "the portrait of a person", init_embedder)
    assert right in offered


def test_vectors_are_cached_on_disk(own_home: Path) -> None:
    skills = make_skills(40)
    first = CountingEmbeddings()
    offer(skills, "a harbour", lambda: first)
    assert first.documents == 40
    assert len(list((own_home / "cache").glob("skills-*"))) == 1
    second = CountingEmbeddings()
    offer(skills, "a harbour", lambda: second)
    assert second.documents == 0
    other = CountingEmbeddings("another embedder")
    offer(skills, "a harbour", lambda: other)
    assert other.documents == 40


@pytest.mark.parametrize(
    "what", ["cut off", "longer", "no numbers", "a zip file", "a header of npy", "pipe", "elsewhere"]
)
def test_a_damaged_cache_is_made_again(what: str, own_home: Path, tmp_path: Path) -> None:
    skills = make_skills(40)
    expected = offer(skills, "a harbour", CountingEmbeddings)
    [cache_file] = (own_home / "cache").glob("skills-*")
    whole = cache_file.read_bytes()
    cache_file.unlink()
    if what == "pipe":
        os.mkfifo(cache_file)
    elif what == "elsewhere":
        (tmp_path / "elsewhere").write_bytes(bytes(len(whole)))
        cache_file.symlink_to(tmp_path / "elsewhere")
    else:
        header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (40, 99999999999), }"
        contents = {
            "cut off": whole[:100],
            "longer": whole + whole[:4],
            "no numbers": np.full(len(whole) // 4, np.nan, np.float32).tobytes(),
            "a zip file": b"PK\x03\x04 and no more",
            "a header of npy": header.ljust(127) + b"\n",
        }
        cache_file.write_bytes(contents[what])
    embedder = CountingEmbeddings()
    assert offer(skills, "a harbour", lambda: embedder) == expected
    assert embedder.documents == 40
    assert cache_file.read_bytes() == whole


def test_a_read_only_home_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GEMS_HOME", str(tmp_path / "file"))
    assert offer(make_skills(40), "a harbour", CountingEmbeddings)
