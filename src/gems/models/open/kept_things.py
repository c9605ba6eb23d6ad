"""What the open generator keeps when it edits an image: the slots of the groups that are already right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gems.models.open.eyes import pretrained
from gems.models.open.questions import parse_question, who_of
from gems.models.open.slots import NUM_SLOTS, SLOT_DIM, encode_item
from gems.models.open.stage import MAX_THINGS
from gems.models.open.wish_reading import read

__all__ = ["kept_slots"]


def kept_slots(
    prompt: str, image: Image.Image, keep: Sequence[str], fix: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The slots to keep, (NUM_SLOTS, SLOT_DIM), and a mask that marks them, (NUM_SLOTS,).

    A group stays if its number was right, nothing about it alone was wrong, and the image shows as many as are asked
    for. Of two groups in a wrong relation the second is redrawn.
    """
    wish, sight = read(prompt).wish, pretrained().look(image)
    passes = [question for text in keep if (question := parse_question(text))]
    failures = [question for text in fix if (question := parse_question(text))]
    counted = {q.who.thing for q in passes if q.kind == "count"}
    faulty = {q.who.thing for q in failures if q.kind != "relation"} | {
        q.partners[0].thing for q in failures if q.kind == "relation" and q.partners[0].thing in counted
    }
    slots, is_kept = np.zeros((NUM_SLOTS, SLOT_DIM), dtype=np.float32), np.zeros(NUM_SLOTS, dtype=np.bool_)
    start = 1
    for index, group in enumerate(wish.groups):
        items = sorted(sight.items(who_of(wish, index)), key=lambda item: item.x)
        end = start + group.count
        right = group.thing in counted - faulty and len(items) == group.count
        if right and end <= 1 + MAX_THINGS:
            for row, item in enumerate(items, start=start):
                slots[row] = encode_item(item)
            is_kept[start:end] = True
        start = end
    return slots, is_kept
