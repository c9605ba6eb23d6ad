"""The exact truth about images made by the open generator. For evaluation only: no node, model or memory reads it.

It has two readings. "All" takes everything that is in the scene; "shown" leaves out things of which less than a fifth
shows, because others cover it or it lies beyond the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from gems.models.open.open_pipeline import OpenPipeline
from gems.models.open.questions import Question, Who, questions_of
from gems.models.open.slots import decode
from gems.models.open.stage import Item, holds_place, relation_margin
from gems.models.open.things import SIZES, THINGS
from gems.models.open.wish import Wish
from gems.models.pocket.sprites import silhouette

__all__ = ["Truth", "check", "holds", "shown_items", "truth_of"]

_HIDDEN: Final = 0.2

Truth = tuple[list[Item], str, str]
"""The things, the background and the text of an image."""


def truth_of(pipeline: OpenPipeline, prompt: str, seed: int, **settings: Any) -> Truth:
    """What is in the image that ``pipeline(prompt, generator=torch.Generator().manual_seed(seed))`` makes."""
    generator = torch.Generator().manual_seed(seed)
    output = pipeline(prompt, generator=generator, output_type="slots", **settings)
    return decode(np.asarray(output.images[0]))


def shown_items(items: Sequence[Item]) -> list[Item]:
    """The things of which at least a fifth shows."""
    side = 192
    owner = Image.new("I", (side, side), -1)
    areas = [1.0] * len(items)
    for index in sorted(range(len(items)), key=lambda k: (items[k].depth, items[k].bottom)):
        item = items[index]
        mask = silhouette(THINGS[item.thing].twemoji, max(2, round(item.size * side)))
        areas[index] = max(1.0, float(sum(mask.histogram()[128:])))
        corner = (round(item.x * side - mask.width / 2), round(item.y * side - mask.height / 2))
        owner.paste(index, corner, mask.point(lambda v: 255 if v >= 128 else 0))
    owners = np.asarray(owner)
    return [item for k, item in enumerate(items) if (owners == k).sum() / areas[k] >= _HIDDEN]


def check(wish: Wish, truth: Truth) -> dict[str, bool]:
    """Whether each part of a wish holds, by the text of its question."""
    return {text: holds(question, truth) for text, question in questions_of(wish)}


def holds(question: Question, truth: Truth) -> bool:
    """Whether yes is the right answer. What is asked about an absent thing is false."""
    items, background, text = truth
    members = _members(question.who, items)
    match question.kind:
        case "background":
            return background == question.name
        case "absent":
            return not members
        case "count":
            return len(members) >= question.count if question.more else len(members) == question.count
    if not members:
        return False
    match question.kind:
        case "object":
            return True
        case "attribute":
            return all(i.look == question.look for i in members)
        case "size":
            low, high = SIZES[question.name]
            return all(low <= i.size <= high for i in members)
        case "place":
            return holds_place(question.name, members)
        case "text":
            return text == question.name and any(i.lettered for i in members)
        case "relation":
            partners = [_members(who, items) for who in question.partners]
            return all(partners) and relation_margin(question.name, members, *partners) > 0
    raise ValueError(question.kind)


def _members(who: Who, items: Sequence[Item]) -> list[Item]:
    return [i for i in items if i.thing == who.thing and who.look in (-1, i.look)]
