from __future__ import annotations

import numpy as np
import pytest

from gems.models.pocket.captions import WORDS, rich_caption, terse_caption
from gems.models.pocket.scene import (
    NUM_SLOTS,
    SLOT_DIM,
    Item,
    decode_slots,
    encode_slots,
    layout,
    relation_margin,
    sample_spec,
)
from gems.models.pocket.tokenizer import build_tokenizer
from gems.models.pocket.vocabulary import ATTRIBUTES, OBJECTS, RELATIONS


def item(x: float, y: float, *, size: float = 0.1, depth: float = 0.5, obj: int = 0) -> Item:
    return Item(obj, 0, x, y, size, depth)


def test_the_vocabulary_is_the_benchmarks() -> None:
    assert (len(OBJECTS), len(ATTRIBUTES) - 1, len(RELATIONS)) == (40, 18, 9)
    assert SLOT_DIM == 64


def test_slots_can_be_read_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        items = layout(sample_spec(rng), rng).items
        slots = encode_slots(items)
        assert slots.shape == (NUM_SLOTS, SLOT_DIM)
        back = decode_slots(slots)
        assert [(i.object, i.attribute) for i in back] == [(i.object, i.attribute) for i in items]
        for a, b in zip(items, back, strict=True):
            assert (a.x, a.y, a.size, a.depth) == pytest.approx((b.x, b.y, b.size, b.depth), abs=1e-5)


def test_too_many_items_are_refused() -> None:
    with pytest.raises(ValueError, match="25 items"):
        encode_slots([item(0.5, 0.5)] * 25)


def test_laid_out_scenes_satisfy_their_relations_clearly() -> None:
    rng = np.random.default_rng(1)
    met_count = relation_count = 0
    for _ in range(400):
        spec = sample_spec(rng)
        scene = layout(spec, rng)
        assert [len(m) for m in scene.members] == [g.count for g in spec.groups]
        for i, relation in enumerate(scene.spec.relations):
            if relation:
                assert relation_margin(relation, scene.members[i], scene.members[i + 1]) > 0.02
        relation_count += sum(r is not None for r in spec.relations)
        met_count += sum(r is not None for r in scene.spec.relations)
    assert met_count / relation_count > 0.95


@pytest.mark.parametrize(
    ("relation", "a", "b"),
    [
        ("to the left of", [item(0.2, 0.5)], [item(0.8, 0.5)]),
        ("to the right of", [item(0.8, 0.5)], [item(0.2, 0.5)]),
        ("on top of", [item(0.5, 0.3)], [item(0.5, 0.6)]),
        ("under", [item(0.5, 0.6)], [item(0.5, 0.3)]),
        ("in front of", [item(0.5, 0.5, depth=0.9)], [item(0.5, 0.5, depth=0.3)]),
        ("behind", [item(0.5, 0.5, depth=0.3)], [item(0.5, 0.5, depth=0.9)]),
        ("chasing", [item(0.7, 0.5)], [item(0.3, 0.5)]),
        ("jumping over", [item(0.5, 0.2)], [item(0.5, 0.6)]),
        ("playing with", [item(0.45, 0.5)], [item(0.55, 0.5)]),
    ],
)
def test_what_the_relations_mean(relation: str, a: list[Item], b: list[Item]) -> None:
    assert relation_margin(relation, a, b) > 0
    if relation != "playing with":
        assert relation_margin(relation, b, a) < 0
    else:
        assert relation_margin(relation, a, [item(0.95, 0.5)]) < 0


def test_an_unknown_relation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown relation"):
        relation_margin("admiring", [item(0, 0)], [item(1, 1)])


def test_atoms_are_counted_as_the_benchmark_does() -> None:
    rng = np.random.default_rng(2)
    for atoms in range(3, 11):
        spec = sample_spec(rng, atoms)
        assert spec.atoms == atoms


def test_every_caption_is_within_the_generators_words() -> None:
    rng = np.random.default_rng(3)
    tokenizer = build_tokenizer()
    for _ in range(200):
        scene = layout(sample_spec(rng), rng)
        for text in (terse_caption(scene.spec), rich_caption(scene, rng)):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text
    assert len(set(WORDS)) == len(WORDS)
