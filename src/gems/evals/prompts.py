"""Prompts with their questions, in the format of GenEval 2's JSONL: read from the user's file, or newly made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gems.errors import InputError
from gems.files import write_atomically
from gems.json_text import parse_json, strict_json
from gems.models.pocket.captions import terse_caption
from gems.models.pocket.scene import Group, SceneSpec, sample_spec
from gems.models.pocket.vocabulary import ATTRIBUTES, NUMBER_WORDS, OBJECTS, VERBS

__all__ = ["ATOMS", "EvalPrompt", "Vqa", "fresh_prompts", "read_geneval2", "write_prompts"]

ATOMS: Final = range(3, 11)
"""GenEval 2's numbers of atoms per prompt, each for an eighth of the prompts."""


@dataclass(frozen=True, slots=True)
class Vqa:
    """One question about an image, its right answer ("Yes" or a number word) and the skill that it tests."""

    question: str
    answer: str
    skill: str


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """A prompt, its number of atoms, its questions, and the stratum of prompts that it belongs to, if there are any."""

    prompt: str
    atoms: int
    questions: tuple[Vqa, ...]
    stratum: str = ""

    def row(self) -> dict[str, Any]:
        """The row of the benchmark's file."""
        return {
            "prompt": self.prompt,
            "atom_count": self.atoms,
            "vqa_list": [[q.question, q.answer] for q in self.questions],
            "skills": [q.skill for q in self.questions],
        }


def read_geneval2(path: Path) -> list[EvalPrompt]:
    """Read the benchmark's file (``geneval2_data.jsonl`` of github.com/facebookresearch/GenEval2, CC BY-NC 4.0).

    Raises:
        InputError: The file cannot be read, or a line is not a row of the benchmark.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({getattr(error, 'strerror', None) or error})") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            pairs = zip(row["vqa_list"], row["skills"], strict=True)
            questions = tuple(Vqa(str(question), str(answer), str(skill)) for (question, answer), skill in pairs)
            if not questions:
                raise ValueError("vqa_list is empty")
            prompts.append(EvalPrompt(str(row["prompt"]), int(row["atom_count"]), questions))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise InputError(
                f"{path}, line {number}: not a row of GenEval 2 (prompt, atom_count, vqa_list, skills): {error!r}"
            ) from error
    if not prompts:
        raise InputError(f"{path} contains no prompt; give the benchmark's geneval2_data.jsonl")
    if len({p.prompt for p in prompts}) < len(prompts):
        raise InputError(
            f"{path} contains a prompt twice; remove one: the benchmark's scorer finds images by their prompts"
        )
    return prompts


def fresh_prompts(n: int, seed: int) -> list[EvalPrompt]:
    """``n`` different prompts of the pocket vocabulary in the benchmark's wording, with 3 to 10 atoms in turn."""
    rng = np.random.default_rng(seed)
    prompts: dict[str, EvalPrompt] = {}
    while len(prompts) < n:
        spec = sample_spec(rng, ATOMS[len(prompts) % len(ATOMS)])
        prompt = EvalPrompt(terse_caption(spec), spec.atoms, tuple(_questions(spec)))
        prompts.setdefault(prompt.prompt, prompt)
    return list(prompts.values())


def _questions(spec: SceneSpec) -> list[Vqa]:
    """The benchmark's questions, in its order: a group's count, attribute and presence, then its relation to the next.

    "a" is not an atom, but whether there is only one is asked all the same.
    """
    questions = []
    for i, group in enumerate(spec.groups):
        word = OBJECTS[group.object]
        questions.append(Vqa(f"How many {word.plural} are in the image?", NUMBER_WORDS[group.count - 1], "count"))
        if group.attribute:
            questions.append(Vqa(f"{_are_the(group)} {ATTRIBUTES[group.attribute]}?", "Yes", "attribute"))
        questions.append(Vqa(f"Are there any {word.plural} in the image?", "Yes", "object"))
        relation = spec.relations[i] if i < len(spec.relations) else None
        if relation is not None:
            other = _noun(spec.groups[i + 1])
            skill = "verb" if relation in VERBS else "position"
            questions.append(Vqa(f"{_are_the(group)} {relation} the {other}?", "Yes", skill))
    return questions


def _noun(group: Group) -> str:
    word = OBJECTS[group.object]
    return word.singular if group.count == 1 else word.plural


def _are_the(group: Group) -> str:
    return f"{'Is' if group.count == 1 else 'Are'} the {_noun(group)}"


def write_prompts(prompts: list[EvalPrompt], path: Path) -> None:
    """Write prompts as the benchmark's JSONL."""
    write_atomically(path, "".join(strict_json(p.row()) + "\n" for p in prompts).encode())
