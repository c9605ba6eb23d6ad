"""The FAISS index over a store's vectors: exact while they are few, inverted lists beyond; made from the records.

Up to ``EXACT_UP_TO`` vectors every search compares with all of them, in memory. Beyond, vectors lie in the inverted
lists of ``sqrt``-many cells (IVF, half precision), in a file that is memory-mapped, so that opening costs nothing and
processes share it; what was written since lies in a second, small index with the same cells, in memory. From time to
time both are merged into a new file, which replaces the old one in one step. A file that is torn, or of other records,
is noticed and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EXACT_UP_TO",
    "Chunk",
    "Source",
    "VectorIndex",
    "build",
    "newest",
    "newest_index",
    "open_index",
    "publish",
    "reach",
    "remove",
]

EXACT_UP_TO: Final = 20_000
"""Vectors up to which every search compares with all of them."""

_CELLS_PER_ROOT: Final = 2
_PROBES: Final = 48
"""Cells that a search over everything looks into; more for a part of it, whose members lie further apart."""
_PROBES_GROW: Final = 0.42
"""How they grow as the part gets smaller: by this power of how many times it is smaller than all."""
_SEARCH_ALL_CELLS: Final = 5_000
"""Candidates up to which every cell is looked into: so few are compared fast, and none is missed."""
_TRAINING_PER_CELL: Final = 64
_RETRAIN_AT: Final = 4
"""A file grown to so many times what its cells were made for gets new cells."""
_FILES: Final = ("vectors.faiss", "spaces.npy")
_SAMPLES: Final = 32
_SAMPLE: Final = 1 << 16

Chunk = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]
"""Ids of vectors, the vectors (n x dims, of unit length), and the number of the namespace that each lies in."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a saved index was made of."""

    store: str
    """The store's own id: an index of another store is never used."""
    embedder: str
    dims: int
    upto: int
    """The last vector's id."""
    removals: int
    """How many removals it knows of."""
    count: int
    trained_for: int
    files: dict[str, str]
    """Their digests, by name."""


class VectorIndex:
    """Vectors by id, searched within namespaces. Not thread-safe: its store locks.

    Args:
        dims: Of the vectors.
        saved: A folder that ``build`` made; without one, the index is exact and empty.
        manifest: The folder's own.
    """

    def __init__(self, dims: int, saved: Path | None = None, manifest: Manifest | None = None) -> None:
        import faiss

        self.manifest = manifest
        self.upto = manifest.upto if manifest else 0
        self.removals = manifest.removals if manifest else 0
        self._masks: dict[tuple[int, ...], _Mask] = {}
        self._main: Any = None
        if saved is None:
            self._recent: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dims))
            self._spaces = np.empty(0, np.int32)
            return
        self._main = faiss.read_index(str(saved / _FILES[0]), faiss.IO_FLAG_MMAP)
        # Else every search starts 32 threads that read whole lists, those parts too that nobody asks for.
        lists: Any = faiss.downcast_InvertedLists(self._main.invlists)
        lists.prefetch_nthread = 0
        self._recent = _lists(faiss.clone_index(self._main.quantizer), dims, self._main.nlist)
        self._recent.is_trained = True
        # Copied where it is written to: a removal never reaches the file.
        self._spaces = np.load(saved / _FILES[1], mmap_mode="c")

    def add(self, chunk: Chunk) -> None:
        """Take in vectors; ids must be greater than all before."""
        ids, vectors, spaces = chunk
        if not len(ids):
            return
        self._recent.add_with_ids(vectors, ids)
        last = int(ids[-1])
        if last >= len(self._spaces):
            grown = np.full(max(2 * len(self._spaces), last + 1), -1, np.int32)
            grown[: len(self._spaces)] = self._spaces
            self._spaces = grown
        self._spaces[ids] = spaces
        self.upto = last
        for chosen, mask in self._masks.items():
            mask.set(ids[np.isin(spaces, chosen)])

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Forget vectors, known or not."""
        known = ids[ids < len(self._spaces)]
        for mask in self._masks.values():
            mask.clear(known)
        self._spaces[known] = -1

    def search(self, query: NDArray[np.float32], k: int, spaces: Sequence[int]) -> list[int]:
        """Ids of the k vectors in these namespaces that are nearest to a unit vector, nearest first."""
        import faiss

        mask = self._mask(spaces)
        if not mask.count:
            return []
        k = min(k, mask.count)
        selector = faiss.IDSelectorBitmap(mask.bits)  # type: ignore[call-arg, arg-type]
        if self._main is None:
            return self._best(query, k, faiss.SearchParameters(sel=selector))  # type: ignore[call-arg]
        cells = int(self._main.nlist)
        probes = self._probes(mask.count)
        found = self._best(query, k, faiss.SearchParametersIVF(sel=selector, nprobe=probes))  # type: ignore[call-arg]
        if len(found) < k and probes < cells:  # so many lie in no few cells
            found = self._best(query, k, faiss.SearchParametersIVF(sel=selector, nprobe=cells))  # type: ignore[call-arg]
        return found

    def _best(self, query: NDArray[np.float32], k: int, parameters: Any) -> list[int]:
        found: list[tuple[float, int]] = []
        with _one_thread():
            for index in (self._main, self._recent):
                if index is not None and index.ntotal:
                    scores, ids = index.search(query[None], k, params=parameters)
                    found.extend((-float(s), int(i)) for s, i in zip(scores[0], ids[0], strict=True) if i >= 0)
        return [i for _, i in sorted(found)[:k]]

    def _probes(self, count: int) -> int:
        cells, total = int(self._main.nlist), int(self._main.ntotal + self._recent.ntotal)
        return cells if count <= _SEARCH_ALL_CELLS else min(cells, int(_PROBES * (total / count) ** _PROBES_GROW))

    def _mask(self, spaces: Sequence[int]) -> _Mask:
        key = tuple(spaces)
        if key not in self._masks:
            wanted = np.zeros(max(int(self._spaces.max(initial=0)), *key, 0) + 2, bool)
            wanted[list(key)] = True  # the last one stays False: -1 stands for what was removed
            if len(self._masks) >= 64:
                self._masks.clear()
            self._masks[key] = _Mask(wanted[self._spaces])
        return self._masks[key]


class _Mask:
    """A bit for every id, set where it lies in certain namespaces; kept up to date, since making it reads all ids."""

    def __init__(self, chosen: NDArray[np.bool_]) -> None:
        self.bits = np.packbits(chosen, bitorder="little")
        self.count = int(np.count_nonzero(chosen))

    def set(self, ids: NDArray[np.int64]) -> None:
        """Set the bits of ids that were not there before."""
        if len(ids) and (needed := int(ids[-1]) // 8 + 1) > len(self.bits):
            self.bits = np.append(self.bits, np.zeros(max(needed, 2 * len(self.bits)) - len(self.bits), np.uint8))
        np.bitwise_or.at(self.bits, ids // 8, _bit(ids))
        self.count += len(ids)

    def clear(self, ids: NDArray[np.int64]) -> None:
        """Clear the bits of different ids, where they are set."""
        ids = ids[ids < 8 * len(self.bits)]
        ids = ids[self.bits[ids // 8] & _bit(ids) != 0]
        np.bitwise_and.at(self.bits, ids // 8, ~_bit(ids))
        self.count -= len(ids)


def _bit(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (ids % 8).astype(np.uint8))


@contextmanager
def _one_thread() -> Iterator[None]:
    """One query gains little from many threads, and waits ten times as long for one that is kept from its core."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # for the calling thread alone, as OpenMP has it
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


# --- on disk --------------------------------------------------------------------------------------------------------


def newest(folder: Path) -> Path | None:
    """The last index that was finished; others may be under way."""
    found = [path for path in folder.glob("[0-9]*") if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


def open_index(saved: Path, *, store: str, embedder: str) -> VectorIndex | None:
    """A saved index; None if it is not whole, or not of this store and embedder."""
    manifest = _manifest(saved, store, embedder)
    try:
        if manifest is None or any(_digest(saved / name) != manifest.files[name] for name in _FILES):
            return None
        return VectorIndex(manifest.dims, saved, manifest)
    except (OSError, ValueError, KeyError, RuntimeError):  # FAISS raises RuntimeError
        return None


def newest_index(folder: Path, *, store: str, embedder: str) -> VectorIndex | None:
    """The last index that was finished, as ``open_index`` gives it; None if there is none."""
    saved = newest(folder)
    return open_index(saved, store=store, embedder=embedder) if saved else None


def _manifest(saved: Path, store: str, embedder: str) -> Manifest | None:
    """What an index says of itself; None if nothing can be read, or it is of another store or embedder."""
    try:
        manifest = Manifest(**json.loads((saved / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return manifest if (manifest.store, manifest.embedder) == (store, embedder) else None


class Source(Protocol):
    """The records that an index is made of, as they were at one moment."""

    store: str
    embedder: str
    removals: int
    spaces: NDArray[np.int32]
    """By id, the number of the namespace that a vector lies in; -1 where there is none."""

    def sample(self, wanted: int) -> NDArray[np.float32]:
        """About so many of the vectors."""
        ...

    def chunks(self, after: int) -> Iterator[Chunk]:
        """The vectors behind an id, by rising id."""
        ...


def build(
    folder: Path, source: Source, *, anew: bool = False, on_progress: Callable[[int], None] | None = None
) -> Path:
    """Make a new file of all vectors, from the last one where its cells still fit.

    Args:
        folder: Where indexes lie.
        source: What to make it of; at least one vector.
        anew: Make new cells, whatever fits.
        on_progress: Told how many vectors were taken in, each time.

    Returns:
        A draft, for ``publish``.
    """
    import faiss

    count, last = int(np.count_nonzero(source.spaces >= 0)), newest(folder)
    before = open_index(last, store=source.store, embedder=source.embedder) if last else None
    if not anew and last and before and before.manifest and count < _RETRAIN_AT * before.manifest.trained_for:
        index = faiss.read_index(str(last / _FILES[0]))
        upto, trained_for = before.upto, before.manifest.trained_for
        held = np.flatnonzero(before._spaces >= 0)
        there = np.append(source.spaces, np.int32(-1))[np.minimum(held, len(source.spaces))] >= 0
        gone = held[~there]
        index.remove_ids(faiss.IDSelectorBatch(gone.astype(np.int64)))
    else:
        cells = max(1, round(_CELLS_PER_ROOT * count**0.5))
        training = source.sample(cells * _TRAINING_PER_CELL)
        index = _lists(faiss.IndexFlatIP(training.shape[1]), training.shape[1], cells)
        index.cp.max_points_per_centroid = _TRAINING_PER_CELL
        index.train(training)
        upto, trained_for = 0, count
    for ids, vectors, _ in source.chunks(upto):
        index.add_with_ids(vectors, ids)
        upto = int(ids[-1])
        if on_progress:
            on_progress(len(ids))

    draft = folder / f"draft-{uuid.uuid4().hex}"
    draft.mkdir(parents=True)
    faiss.write_index(index, str(draft / _FILES[0]))
    np.save(draft / _FILES[1], source.spaces)
    manifest = Manifest(
        store=source.store,
        embedder=source.embedder,
        dims=index.d,
        upto=upto,
        removals=source.removals,
        count=int(index.ntotal),
        trained_for=trained_for,
        files={name: _digest(draft / name) for name in _FILES},
    )
    (draft / "manifest.json").write_text(json.dumps({f: getattr(manifest, f) for f in manifest.__slots__}))
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return draft


def publish(draft: Path) -> Path:
    """Let a draft be the newest index, and remove the others: what somebody has mapped lives on until they let go."""
    folder = draft.parent
    last = newest(folder)
    finished = folder / str(int(last.name) + 1 if last else 1)
    draft.rename(finished)
    remove(folder, but=finished)
    return finished


def remove(folder: Path, *, but: Path | None = None) -> None:
    """Remove finished indexes."""
    for path in folder.glob("[0-9]*"):
        if path != but:
            shutil.rmtree(path, ignore_errors=True)


def reach(folder: Path, *, store: str, embedder: str) -> int:
    """The last vector in the newest index, by what it says of itself; 0 if it is of another store or embedder."""
    saved = newest(folder)
    manifest = _manifest(saved, store, embedder) if saved else None
    return manifest.upto if manifest else 0


def _lists(quantizer: Any, dims: int, cells: int) -> Any:
    import faiss

    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dims, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.own_fields = True
    quantizer.this.disown()
    return index


def _digest(path: Path) -> str:
    """Of a small file all, of a large one its length and pieces from all over it: what tears a file shows in those."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE:
            digest.update(file.read())
        else:
            for i in range(_SAMPLES):
                file.seek((size - _SAMPLE) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
