"""The exact truth about images made by the pocket generator. For evaluation only: no node, model or memory reads it.

The pocket generator draws slots, so what an image shows need not be guessed from its pixels. Slots follow from the
prompt, the seed and the settings alone, so the truth is computed again rather than stored with an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gems.models.pocket.pipeline import PocketPipeline
from gems.models.pocket.scene import Item, SceneSpec, decode_slots, relation_margin
from gems.models.pocket.vocabulary import VERBS

__all__ = ["all_correct", "check", "items_of", "kind_of"]


def items_of(pipeline: PocketPipeline, prompt: str, seed: int, **settings: Any) -> list[Item]:
    """The things in the image that ``pipeline(prompt, generator=torch.Generator().manual_seed(seed))`` makes.

    ``settings`` are the other arguments of the call, as they were when the image was made.
    """
    generator = torch.Generator().manual_seed(seed)
    output = pipeline(prompt, generator=generator, output_type="slots", **settings)
    return decode_slots(np.asarray(output.images[0]))


def check(spec: SceneSpec, items: Sequence[Item]) -> dict[str, bool]:
    """Whether each atom of a spec holds for the things in an image.

    Keys are a kind and the index of a group or relation: "object 0", "count 0" (the exact number, even if it is one),
    "attribute 0" (all things of that object have it; only if one is asked for), "position 0" and "verb 0" (between
    groups 0 and 1). Anything about an absent object is false.
    """
    groups = [[item for item in items if item.object == group.object] for group in spec.groups]
    truth: dict[str, bool] = {}
    for i, (group, members) in enumerate(zip(spec.groups, groups, strict=True)):
        truth[f"object {i}"] = bool(members)
        truth[f"count {i}"] = len(members) == group.count
        if group.attribute:
            truth[f"attribute {i}"] = bool(members) and all(m.attribute == group.attribute for m in members)
    for i, relation in enumerate(spec.relations):
        if relation is not None:
            a, b = groups[i], groups[i + 1]
            kind = "verb" if relation in VERBS else "position"
            truth[f"{kind} {i}"] = bool(a) and bool(b) and relation_margin(relation, a, b) > 0
    return truth


def kind_of(atom: str) -> str:
    """The kind of one of ``check``'s keys: object, count, attribute, position or verb."""
    return atom.split()[0]


def all_correct(spec: SceneSpec, items: Sequence[Item]) -> bool:
    """Whether every atom of a spec holds."""
    return all(check(spec, items).values())
