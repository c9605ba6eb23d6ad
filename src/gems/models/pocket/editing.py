"""What the pocket generator keeps when it edits an image: the slots of the groups that are already right.

The vision model finds the things; the questions that were answered "yes" tell which groups are right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gems.models.pocket.grammar import parse_question
from gems.models.pocket.scene import NUM_SLOTS, Group, encode_slots
from gems.models.pocket.vision import look
from gems.models.pocket.vocabulary import ATTRIBUTES, COUNTS, PLURALS, SINGULARS

__all__ = ["groups_of", "kept_groups", "kept_slots"]

_NOUN: Final = {**PLURALS, **SINGULARS}
_GROUP: Final = re.compile(
    rf"\b({'|'.join(COUNTS)}) (?:({'|'.join(ATTRIBUTES[1:])}) )?({'|'.join(sorted(_NOUN, key=len, reverse=True))})\b"
)


def groups_of(prompt: str) -> list[Group]:
    """The groups that a generation prompt names, terse or rich, in the order in which they fill the slots."""
    groups: dict[int, Group] = {}
    for number, attribute, noun in _GROUP.findall(prompt):
        group = Group(COUNTS[number], ATTRIBUTES.index(attribute) if attribute else 0, _NOUN[noun])
        groups.setdefault(group.object, group)
    return list(groups.values())


def kept_groups(groups: Sequence[Group], keep: Sequence[str], fix: Sequence[str]) -> set[int]:
    """The objects of the groups to keep: those with the right number, look and position.

    Args:
        groups: The groups that the image should show.
        keep: Questions about the image that were answered yes.
        fix: Questions that were not answered yes.
    """
    passed_questions = {question for text in keep if (question := parse_question(text))}
    failed_questions = [question for text in fix if (question := parse_question(text))]
    right_counts = {(q.object, q.count) for q in passed_questions if q.kind == "count"}
    faulty_objects = {q.object for q in failed_questions if not q.relation}
    kept_objects = {g.object for g in groups if (g.object, g.count) in right_counts and g.object not in faulty_objects}
    for question in failed_questions:
        # Two groups in the wrong relation cannot both stay: the second one is redrawn.
        if question.relation and {question.object, question.other} <= kept_objects:
            kept_objects.discard(question.other)
    return kept_objects


def kept_slots(
    prompt: str, image: Image.Image, keep: Sequence[str], fix: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The slots to keep, (NUM_SLOTS, SLOT_DIM), and a mask that marks them, (NUM_SLOTS,).

    A group is kept only if the image shows as many of its things as the prompt asks for.
    """
    groups, sight = groups_of(prompt), look(image)
    kept_objects = kept_groups(groups, keep, fix)
    slots, is_kept = encode_slots([]), np.zeros(NUM_SLOTS, dtype=np.bool_)
    start = 0
    for group in groups:
        items = sorted(sight.items(group.object), key=lambda item: item.x)
        end = start + group.count
        if group.object in kept_objects and len(items) == group.count and end <= NUM_SLOTS:
            slots[start:end] = encode_slots(items)[: group.count]
            is_kept[start:end] = True
        start = end
    return slots, is_kept
