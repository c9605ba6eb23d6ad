"""The index gives the same results as exact search while vectors are added and removed."""

from __future__ import annotations

import numpy as np

from gems.memory.index import VectorIndex


def test_every_search_finds_the_current_vectors() -> None:
    dice, index = np.random.default_rng(0), VectorIndex(8)
    stored: dict[int, tuple[np.ndarray, int]] = {}
    following = 1
    for _ in range(200):
        if dice.random() < 0.6:
            ids = np.arange(following, following := following + int(dice.integers(1, 30)))
            spaces = dice.integers(1, 4, len(ids)).astype(np.int32)
            vectors = dice.normal(size=(len(ids), 8)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            index.add((ids, vectors, spaces))
            stored |= {int(i): (v, int(s)) for i, v, s in zip(ids, vectors, spaces, strict=True)}
        else:
            removed_ids = dice.choice(
                following + 5, size=4, replace=False
            )  # some are already removed, others never existed
            index.remove(removed_ids)
            for i in removed_ids:
                stored.pop(int(i), None)
        query = dice.normal(size=8).astype(np.float32)
        for searched_spaces in ((1,), (1, 3), (2,), (9,)):
            right = sorted((-float(v @ query), i) for i, (v, s) in stored.items() if s in searched_spaces)
            assert index.search(query, 5, searched_spaces) == [i for _, i in right[:5]]
