"""The FAISS index over a store's vectors: exact for few vectors, inverted lists for many; built from the records.

Up to ``EXACT_UP_TO`` vectors, every search compares with all of them, in memory. Beyond that, the vectors are in
inverted lists (IVF, half precision) whose number of cells grows with the square root of the number of vectors. The
lists are in a file that is mapped into memory, so that opening it is instant and processes share it. Vectors written
since then are in a second, small index with the same cells, in memory. From time to time both are merged into a new
file, which replaces the old one in one step. The records name the one file that belongs to them. A file that is
damaged, or that they do not name, is built again: one of the two may be a copy of another time, whose ids mean other
vectors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from gems.json_text import parse_json
from gems.paths import keep_private, make_folder

__all__ = [
    "EXACT_UP_TO",
    "Chunk",
    "Manifest",
    "Source",
    "VectorIndex",
    "build",
    "newest",
    "newest_index",
    "newest_manifest",
    "open_index",
    "publish",
    "remove",
    "saved_vectors",
    "too_sparse",
]

EXACT_UP_TO: Final = 20_000
"""Number of vectors up to which every search compares with all of them."""

_CELLS_PER_ROOT: Final = 2
"""Number of cells, divided by the square root of the number of vectors."""
_PROBES: Final = 48
"""Number of cells that a search of all namespaces looks into. A search of a part looks into more, since the members of
a part are further apart."""
_PROBES_EXPONENT: Final = 0.42
"""A part that is n times smaller than the whole is searched in n to this power times as many cells."""
_SEARCH_ALL_CELLS: Final = 5_000
"""Number of candidates up to which every cell is searched: comparing so few is fast, and no candidate is missed."""
_TRAINING_PER_CELL: Final = 64
"""Number of vectors per cell that the cells are trained on."""
_RETRAIN_AT: Final = 4
"""New cells are trained once there are this many times as many vectors as at the last training."""
_NUMBER: Final = re.compile("[0-9]{1,18}")
"""Matches the names of finished indexes."""
_FILES: Final = ("vectors.faiss", "spaces.npy")
_CELLS_AT: Final = 53
"""The offset in a FAISS file of an IVF index at which the index of its cells begins."""
_MAX_ID: Final = 2**63
"""No id and no number of vectors is as large."""
MAX_SPACE: Final = 10**7
"""No number of a namespace is larger."""
_IDS_PER_VECTOR: Final = 1000
"""A file, which has a number for each id, is made for no more ids than this for each vector: ids are never reused, and
somebody else's may be of any size."""
_MAX_MASKS: Final = 64
"""Number of masks that are kept."""
_SAMPLES: Final = 32
"""Number of pieces of a large file that its digest covers."""
_SAMPLE_BYTES: Final = 1 << 16
"""Size of such a piece, in bytes."""

Chunk = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]
"""Some vectors: their ids (n,), the vectors of unit length (n, dims), and the numbers of their namespaces (n,)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a saved index was built from."""

    id: str
    """The file's own id, which the records name."""
    store: str
    """The store's id; an index of another store is never used."""
    embedder: str
    dims: int
    upto: int
    """The id of the last vector."""
    removals: int
    """The number of the last removal that is taken into account."""
    count: int
    trained_for: int
    """The number of vectors when the cells were trained."""
    files: dict[str, str]
    """Digests of the files, by name."""


class VectorIndex:
    """Vectors by id, searched within namespaces. Not thread-safe: its store locks.

    Within it, a vector has a position: in a file its id, and for those that were added since, their number from the
    file's end. What is kept of each position thus takes as much room as there are vectors, whatever their ids are.

    Args:
        dims: Dimensions of the vectors.
        saved: A folder written by ``build``; without it, the index is exact and empty.
        manifest: The manifest in that folder.
    """

    def __init__(self, dims: int, saved: Path | None = None, manifest: Manifest | None = None) -> None:
        import faiss

        self.manifest = manifest
        self.last_vector_id = manifest.upto if manifest else 0
        self.removals = manifest.removals if manifest else 0
        self.dead = 0
        """Number of vectors removed since the index was loaded; a search still passes over them."""
        self._masks: dict[tuple[int, ...], _Mask] = {}
        self._main: Any = None
        if saved is None:
            self._recent: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dims))
            self._spaces = np.empty(0, np.int32)
            self._ids = np.empty(0, np.int64)
            self._in_file = 0
            return
        self._main = _mapped(saved)
        if self._main.d != dims:
            raise ValueError(f"{saved} holds vectors of {self._main.d} dimensions")
        # By default every search starts 32 threads that read whole lists, including the parts that are masked.
        lists: Any = faiss.downcast_InvertedLists(self._main.invlists)
        lists.prefetch_nthread = 0
        self._recent = _inverted_lists(faiss.clone_index(self._main.quantizer), dims, self._main.nlist)
        self._recent.is_trained = True
        # Copy on write: a removal never reaches the file.
        self._spaces = np.load(saved / _FILES[1], mmap_mode="c")
        if (
            self._spaces.dtype != np.int32
            or self._spaces.ndim != 1
            or self._spaces.min(initial=0) < -1
            or self._spaces.max(initial=0) > MAX_SPACE
            or too_sparse(len(self._spaces), int(self._main.ntotal))
        ):
            raise ValueError(f"{saved / _FILES[1]} is not of the form that GEMS writes")
        self._ids = np.empty(0, np.int64)
        """The ids of the vectors that are not in the file, ascending."""
        self._in_file = len(self._spaces)
        """The number of positions that are ids in the file."""

    def add(self, chunk: Chunk) -> None:
        """Add vectors; their ids must be greater than all ids before."""
        ids, vectors, spaces = chunk
        if not len(ids):
            return
        positions = np.arange(len(ids)) + self._in_file + len(self._ids)
        self._recent.add_with_ids(vectors, positions)
        self._ids = np.append(self._ids, ids)
        if positions[-1] >= len(self._spaces):
            grown = np.full(max(2 * len(self._spaces), positions[-1] + 1), -1, np.int32)
            grown[: len(self._spaces)] = self._spaces
            self._spaces = grown
        self._spaces[positions] = spaces
        self.last_vector_id = int(ids[-1])
        for mask_spaces, mask in self._masks.items():
            mask.set(positions[np.isin(spaces, mask_spaces)])

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Remove vectors; unknown ids are ignored."""
        positions = self._positions(ids)
        positions = positions[self._spaces[positions] >= 0]
        self.dead += len(positions)
        for mask in self._masks.values():
            mask.clear(positions)
        self._spaces[positions] = -1

    def _positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of these vectors, each once; without unknown ids."""
        ids = np.unique(ids)
        new_ids = np.flatnonzero(np.isin(self._ids, ids)) + self._in_file
        return np.append(ids[(ids >= 0) & (ids < self._in_file)], new_ids)

    def _id(self, position: int) -> int:
        return position if position < self._in_file else int(self._ids[position - self._in_file])

    def search(self, query: NDArray[np.float32], k: int, spaces: Sequence[int]) -> list[int]:
        """Ids of the k vectors in these namespaces that are nearest to a unit vector, nearest first."""
        import faiss

        mask = self._mask(spaces)
        if not mask.count:
            return []
        k = min(k, mask.count)
        selector = faiss.IDSelectorBitmap(mask.bits)  # type: ignore[call-arg, arg-type]
        if self._main is None:
            return self._nearest(query, k, faiss.SearchParameters(sel=selector))  # type: ignore[call-arg]
        cells = int(self._main.nlist)
        probes = self._probes(mask.count)
        ids = self._nearest(query, k, faiss.SearchParametersIVF(sel=selector, nprobe=probes))  # type: ignore[call-arg]
        if len(ids) < k and probes < cells:  # the cells that were searched hold fewer than k
            ids = self._nearest(query, k, faiss.SearchParametersIVF(sel=selector, nprobe=cells))  # type: ignore[call-arg]
        return ids

    def surviving_ids(self) -> NDArray[np.int64]:
        """The ids of all vectors that have not been removed."""
        positions = np.flatnonzero(self._spaces >= 0)
        is_new = positions >= self._in_file
        return np.append(positions[~is_new], self._ids[positions[is_new] - self._in_file])

    def _nearest(self, query: NDArray[np.float32], k: int, parameters: Any) -> list[int]:
        hits: list[tuple[float, int]] = []
        with _one_thread():
            for index in (self._main, self._recent):
                if index is not None and index.ntotal:
                    scores, ids = index.search(query[None], k, params=parameters)
                    hits.extend((-float(s), int(i)) for s, i in zip(scores[0], ids[0], strict=True) if i >= 0)
        return [self._id(position) for _, position in sorted(hits)[:k]]

    def _probes(self, count: int) -> int:
        """The number of cells that a search among ``count`` vectors looks into."""
        cells, total = int(self._main.nlist), int(self._main.ntotal + self._recent.ntotal)
        return cells if count <= _SEARCH_ALL_CELLS else min(cells, int(_PROBES * (total / count) ** _PROBES_EXPONENT))

    def _mask(self, spaces: Sequence[int]) -> _Mask:
        key = tuple(spaces)
        if key not in self._masks:
            if len(self._masks) >= _MAX_MASKS:
                self._masks.clear()
            self._masks[key] = _Mask(np.isin(self._spaces, key))
        return self._masks[key]


class _Mask:
    """One bit per position, set if its vector is in certain namespaces. It is updated, since making it reads all."""

    def __init__(self, is_set: NDArray[np.bool_]) -> None:
        self.bits = np.packbits(is_set, bitorder="little")
        self.count = int(np.count_nonzero(is_set))

    def set(self, ids: NDArray[np.int64]) -> None:
        """Set the bits of new ids."""
        if len(ids) and (size := int(ids[-1]) // 8 + 1) > len(self.bits):
            self.bits = np.append(self.bits, np.zeros(max(size, 2 * len(self.bits)) - len(self.bits), np.uint8))
        np.bitwise_or.at(self.bits, ids // 8, _bit(ids))
        self.count += len(ids)

    def clear(self, ids: NDArray[np.int64]) -> None:
        """Clear the bits of distinct ids that are set."""
        ids = ids[ids < 8 * len(self.bits)]
        ids = ids[self.bits[ids // 8] & _bit(ids) != 0]
        np.bitwise_and.at(self.bits, ids // 8, ~_bit(ids))
        self.count -= len(ids)


def _bit(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (ids % 8).astype(np.uint8))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Search in one thread: a query gains little from many, and all of them wait for one that loses its core."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # OpenMP sets this for the calling thread only
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


# --- on disk --------------------------------------------------------------------------------------------------------


def newest(folder: Path) -> Path | None:
    """The newest finished index; None if there is none. An index that is being built does not count."""
    finished = [path for path in folder.glob("[0-9]*") if _NUMBER.fullmatch(path.name)]
    return max(finished, key=lambda path: int(path.name), default=None)


def open_index(saved: Path, *, store: str, embedder: str, index: str) -> VectorIndex | None:
    """A saved index; None if it is damaged, or is not the one that the records name.

    Args:
        saved: The folder of the saved index.
        store: The store's id.
        embedder: The fingerprint of the store's embedder.
        index: The id of the index that the records name.
    """
    manifest = _manifest(saved, store, embedder, index)
    try:
        if manifest is None or any(_digest(saved / name) != manifest.files[name] for name in _FILES):
            return None
        return VectorIndex(manifest.dims, saved, manifest)
    except Exception:  # whatever a file of somebody else's leads FAISS and NumPy to
        return None


def newest_index(folder: Path, *, store: str, embedder: str, index: str) -> VectorIndex | None:
    """The newest finished index, opened by ``open_index``; None if there is none."""
    saved = newest(folder)
    return open_index(saved, store=store, embedder=embedder, index=index) if saved else None


def newest_manifest(folder: Path, *, store: str, embedder: str, index: str) -> Manifest | None:
    """The manifest of the newest finished index; None if there is none, or ``open_index`` would refuse its manifest."""
    saved = newest(folder)
    return _manifest(saved, store, embedder, index) if saved else None


def too_sparse(ids: int, count: int) -> bool:
    """Whether so many ids are too many for a file of this number of vectors."""
    return ids > _IDS_PER_VECTOR * max(1, count)


def saved_vectors(
    saved: Path,
) -> tuple[Callable[[NDArray[np.int64]], NDArray[np.float32]], NDArray[np.int64], NDArray[np.int32]]:
    """What a saved index holds: a function that returns its vectors by id, all their ids, and namespaces by id."""
    import faiss

    index = _mapped(saved)
    index.set_direct_map_type(faiss.DirectMap.Hashtable)  # type: ignore[attr-defined]
    lists = index.invlists
    sizes = [lists.list_size(number) for number in range(index.nlist)]
    ids = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in enumerate(sizes) if size]
    return index.reconstruct_batch, np.concatenate([np.empty(0, np.int64), *ids]), np.load(saved / _FILES[1])


def _mapped(saved: Path) -> Any:
    """The FAISS index in a folder, mapped into memory; it may be somebody else's.

    FAISS has a form whose vectors lie in another file, wherever that is, which it would open and change. Mapped, the
    index itself opens nothing else; but the index of its cells is read into memory in any case, so what that is is
    looked at first.

    Raises:
        RuntimeError: FAISS cannot read it.
        ValueError: It is of another form than ``build`` writes.
    """
    import faiss

    path = saved / _FILES[0]
    with path.open("rb") as file:
        head = file.read(_CELLS_AT + 4)
    if (head[:4], head[_CELLS_AT:]) == (b"IwSq", b"IxFI"):
        index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        lists: Any = faiss.downcast_InvertedLists(index.invlists)
        is_own = type(lists) is faiss.OnDiskInvertedLists and not lists.filename and lists.ptr is not None
        if is_own and index.quantizer.d == index.d:
            return index
    raise ValueError(f"{path} is not of the form that GEMS writes")


def _manifest(saved: Path, store: str, embedder: str, index: str) -> Manifest | None:
    """The manifest of a saved index; None if it cannot be read, or is not the one of these records."""
    try:
        content = parse_json((saved / "manifest.json").read_text(encoding="utf-8"))
        manifest = TypeAdapter(Manifest).validate_python(content)
    except (OSError, ValueError):
        return None
    numbers = (manifest.dims, manifest.upto, manifest.removals, manifest.count, manifest.trained_for)
    if not all(0 <= number < _MAX_ID for number in numbers):
        return None
    return manifest if (manifest.store, manifest.embedder, manifest.id) == (store, embedder, index) else None


class Source(Protocol):
    """The records that an index is built from, as of one moment."""

    store: str
    embedder: str
    index: str
    """The id of the index that the records name; empty if there is none."""
    removals: int
    spaces: NDArray[np.int32]
    """By id, the number of a vector's namespace; -1 for ids without a vector."""

    def sample(self, count: int) -> NDArray[np.float32]:
        """About ``count`` of the vectors."""
        ...

    def chunks(self, after: int) -> Iterator[Chunk]:
        """The vectors with ids greater than ``after``, in the order of their ids."""
        ...


def build(
    folder: Path, source: Source, *, retrain: bool = False, on_progress: Callable[[int], None] | None = None
) -> Path:
    """Build a new file of all vectors, starting from the last file if its cells still fit.

    Args:
        folder: The folder of the saved indexes.
        source: The records; they must hold at least one vector.
        retrain: Train new cells even if the old ones fit.
        on_progress: Called with the number of vectors in each chunk that was added.

    Returns:
        A draft, for ``publish``; its name is ``draft-`` and the index's id.
    """
    extended = None if retrain else _extend_newest(folder, source)
    index, last_vector_id, trained_for = extended or _train(source)
    for ids, vectors, _ in source.chunks(last_vector_id):
        index.add_with_ids(vectors, ids)
        last_vector_id = int(ids[-1])
        if on_progress:
            on_progress(len(ids))
    return _write_draft(folder, index, source, last_vector_id=last_vector_id, trained_for=trained_for)


def _extend_newest(folder: Path, source: Source) -> tuple[Any, int, int] | None:
    """The newest file's index without removed vectors, its last id, and what it was trained for; None if of no use."""
    import faiss

    saved = newest(folder)
    opened = open_index(saved, store=source.store, embedder=source.embedder, index=source.index) if saved else None
    count = int(np.count_nonzero(source.spaces >= 0))
    if not saved or not opened or not opened.manifest or count >= _RETRAIN_AT * opened.manifest.trained_for:
        return None
    _mapped(saved)  # what is refused there is not read here
    index = faiss.read_index(str(saved / _FILES[0]))
    indexed_ids = opened.surviving_ids()
    # An id beyond the end of `spaces` takes the -1 that is appended to it.
    is_current = np.append(source.spaces, np.int32(-1))[np.minimum(indexed_ids, len(source.spaces))] >= 0
    index.remove_ids(faiss.IDSelectorBatch(indexed_ids[~is_current].astype(np.int64)))
    return index, opened.last_vector_id, opened.manifest.trained_for


def _train(source: Source) -> tuple[Any, int, int]:
    """An empty index with new cells, 0 as its last id, and the number of vectors that it was trained for."""
    import faiss

    count = int(np.count_nonzero(source.spaces >= 0))
    cells = max(1, round(_CELLS_PER_ROOT * count**0.5))
    training = source.sample(cells * _TRAINING_PER_CELL)
    index = _inverted_lists(faiss.IndexFlatIP(training.shape[1]), training.shape[1], cells)
    index.cp.max_points_per_centroid = _TRAINING_PER_CELL
    index.train(training)
    return index, 0, count


def _write_draft(folder: Path, index: Any, source: Source, *, last_vector_id: int, trained_for: int) -> Path:
    import faiss

    index_id = uuid.uuid4().hex
    draft = folder / f"draft-{index_id}"
    make_folder(draft)
    faiss.write_index(index, str(draft / _FILES[0]))
    np.save(draft / _FILES[1], source.spaces)
    manifest = Manifest(
        id=index_id,
        store=source.store,
        embedder=source.embedder,
        dims=index.d,
        upto=last_vector_id,
        removals=source.removals,
        count=int(index.ntotal),
        trained_for=trained_for,
        files={name: _digest(draft / name) for name in _FILES},
    )
    (draft / "manifest.json").write_text(json.dumps({f: getattr(manifest, f) for f in manifest.__slots__}))
    keep_private(*draft.iterdir())
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return draft


def publish(draft: Path) -> str:
    """Make a draft the newest index, and remove the older ones. Processes that have mapped one can go on using it.

    Returns:
        The id of the index, which the records have to name from now on.
    """
    folder = draft.parent
    last = newest(folder)
    finished = folder / str(int(last.name) + 1 if last else 1)
    draft.rename(finished)
    remove(folder, keep=finished)
    return draft.name.removeprefix("draft-")


def remove(folder: Path, *, keep: Path | None = None) -> None:
    """Remove all finished indexes, except ``keep``."""
    for path in folder.glob("[0-9]*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def _inverted_lists(quantizer: Any, dims: int, cells: int) -> Any:
    import faiss

    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dims, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.own_fields = True
    quantizer.this.disown()
    return index


def _digest(path: Path) -> str:
    """SHA-256 of a small file; for a large one, of its size and of pieces from all over it, to detect a torn write."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for i in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
