"""What of an image is to stay when the pocket generator edits it: the slots of the groups that are right already.

The vision model finds the things; which of their groups are right is said by the questions that were answered "yes".
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
    """The groups that a generation prompt names, terse or rich, in order: in that order they fill the slots."""
    groups: dict[int, Group] = {}
    for number, attribute, noun in _GROUP.findall(prompt):
        group = Group(COUNTS[number], ATTRIBUTES.index(attribute) if attribute else 0, _NOUN[noun])
        groups.setdefault(group.object, group)
    return list(groups.values())


def kept_groups(groups: Sequence[Group], keep: Sequence[str], fix: Sequence[str]) -> set[int]:
    """The objects of the groups that are to stay: the right number of the right look, and where they should be.

    Args:
        groups: What the image is to show.
        keep: Questions about it that were answered yes.
        fix: Questions that were not.
    """
    right = {question for text in keep if (question := parse_question(text))}
    wrong = [question for text in fix if (question := parse_question(text))]
    counted = {(q.object, q.count) for q in right if q.kind == "count"}
    faulty = {q.object for q in wrong if not q.relation}
    stay = {g.object for g in groups if (g.object, g.count) in counted and g.object not in faulty}
    for question in wrong:
        # Two groups that stand wrongly to each other cannot both stay: the second one moves.
        if question.relation and {question.object, question.other} <= stay:
            stay.discard(question.other)
    return stay


def kept_slots(
    prompt: str, image: Image.Image, keep: Sequence[str], fix: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The slots that are to stay, (NUM_SLOTS, SLOT_DIM), and which of them those are, (NUM_SLOTS,).

    A group stays only if as many of its things are found as the prompt asks for.
    """
    groups, sight = groups_of(prompt), look(image)
    stay = kept_groups(groups, keep, fix)
    slots, known = encode_slots([]), np.zeros(NUM_SLOTS, dtype=np.bool_)
    start = 0
    for group in groups:
        items = sorted(sight.items(group.object), key=lambda item: item.x)
        end = start + group.count
        if group.object in stay and len(items) == group.count and end <= NUM_SLOTS:
            slots[start:end] = encode_slots(items)[: group.count]
            known[start:end] = True
        start = end
    return slots, known
