"""The index gives the same results as exact search while vectors are added and removed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gems.memory.index import Chunk, VectorIndex, build, open_index, publish, saved_vectors


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


class Vectors:
    """The vectors of a store that holds one user's."""

    store, embedder, removals = "a store", "an embedder", 0

    def __init__(self, count: int, index: str = "") -> None:
        self.index = index
        self.spaces = np.zeros(count + 1, np.int32)
        self.spaces[0] = -1
        self._vectors = np.random.default_rng(0).random((count, 8), np.float32)

    def sample(self, count: int) -> NDArray[np.float32]:
        return self._vectors[:count]

    def chunks(self, after: int) -> Iterator[Chunk]:
        ids = np.arange(after + 1, len(self.spaces))
        yield ids, self._vectors[after:], self.spaces[after + 1 :]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with an index of 400 vectors, which the records name."""
    publish(build(tmp_path / "index", Vectors(400)))
    return tmp_path / "index" / "1"


def put_elsewhere(saved: Path, file: Path) -> None:
    """Move the vectors of a saved index into another file, which its own file then names."""
    import faiss

    path = str(saved / "vectors.faiss")
    index: Any = faiss.read_index(path)
    lists: Any = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(file))
    lists.merge_from_1(index.invlists)
    index.replace_invlists(lists, False)
    faiss.write_index(index, path)


def sign(saved: Path) -> str:
    """Let the manifest name the files as they are. Returns the id of the index."""
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"] = {
        name: hashlib.sha256(str((saved / name).stat().st_size).encode() + (saved / name).read_bytes()).hexdigest()
        for name in manifest["files"]
    }
    (saved / "manifest.json").write_text(json.dumps(manifest))
    return str(manifest["id"])


def test_no_index_of_somebody_else_writes_to_another_file(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    put_elsewhere(saved, other)
    other.write_bytes(content := b"p" * other.stat().st_size)
    name = sign(saved)
    assert open_index(saved, store=Vectors.store, embedder=Vectors.embedder, index=name) is None
    with pytest.raises(ValueError, match="not of the form"):
        saved_vectors(saved)
    draft = build(saved.parent, Vectors(500, index=name))
    assert other.read_bytes() == content
    assert json.loads((draft / "manifest.json").read_text())["count"] == 500


def test_no_index_within_an_index_of_somebody_else_opens_another_file(saved: Path, tmp_path: Path) -> None:
    import faiss

    put_elsewhere(saved, tmp_path / "other")
    inner: Any = faiss.read_index(str(saved / "vectors.faiss"))
    outer: Any = faiss.IndexIVFScalarQuantizer(inner, 8, inner.ntotal, faiss.ScalarQuantizer.QT_fp16)
    faiss.write_index(outer, str(saved / "vectors.faiss"))
    (tmp_path / "other").unlink()  # FAISS would say that it cannot open it
    with pytest.raises(ValueError, match="not of the form"):
        saved_vectors(saved)


@pytest.mark.parametrize(
    "spaces", [np.zeros(401), np.zeros((401, 1), np.int32), np.full(401, 2**31 - 1, np.int32), np.full(9, -2, np.int32)]
)
def test_an_index_whose_namespaces_are_no_numbers_of_ours_is_built_again(saved: Path, spaces: NDArray[Any]) -> None:
    np.save(saved / "spaces.npy", spaces)
    assert open_index(saved, store=Vectors.store, embedder=Vectors.embedder, index=sign(saved)) is None


@pytest.mark.parametrize(
    "form", [b"", b"\x93NUMPY\x01\x00\x20\x00{'shape': ((((((((((((((((((((((", b"PK\x05\x06" + bytes(18)]
)
def test_namespaces_of_no_form_of_numpy_end_nothing(saved: Path, form: bytes) -> None:
    (saved / "spaces.npy").write_bytes(form)
    draft = build(saved.parent, Vectors(500, index=sign(saved)))
    assert json.loads((draft / "manifest.json").read_text())["trained_for"] == 500


def test_an_index_extends_the_last_one(saved: Path) -> None:
    name = sign(saved)
    opened = open_index(saved, store=Vectors.store, embedder=Vectors.embedder, index=name)
    assert opened is not None
    draft = build(saved.parent, Vectors(500, index=name))
    assert json.loads((draft / "manifest.json").read_text())["trained_for"] == 400


@pytest.mark.parametrize("name", ["dims", "upto", "removals", "count", "trained_for", "files"])
@pytest.mark.parametrize("value", [None, "x", -1, 1.5, 2**70, [], {}])
def test_an_index_whose_manifest_says_nonsense_is_built_again(saved: Path, name: str, value: object) -> None:
    manifest = json.loads((saved / "manifest.json").read_text()) | {name: value}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    index = str(manifest["id"])
    assert open_index(saved, store=Vectors.store, embedder=Vectors.embedder, index=index) is None
    shutil.rmtree(build(saved.parent, Vectors(500, index=index)))
