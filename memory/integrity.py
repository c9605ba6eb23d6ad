"""Checks that the records, vectors and index of a memory folder belong together, and says how to repair them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from langgraph.store.base import get_text_at_path
from numpy.typing import NDArray

from gems.memory.index import EXACT_UP_TO, Manifest, newest, newest_index, saved_vectors
from gems.memory.records import Records

__all__ = ["check_index", "check_vectors"]

_TOLERANCE: Final = 2e-3
"""Greatest difference between a number of a vector and the same number in an index, which has half precision."""
_REINDEX: Final = "`gems memory reindex` embeds the records again"
_COMPACT: Final = "`gems memory compact` repairs it"


def check_vectors(records: Records) -> tuple[bool, str]:
    """Whether every embedded text has its vector, in its record's namespace, and every vector has a record."""
    dims, non_unit_count, total = records.dims(), 0, 0
    if damaged := records.vectors.damaged():
        return False, f"{damaged} of {records.count('vectors')} cannot be read; {_COMPACT}, then {_REINDEX}"
    if records.vectors.has_odd_ids():
        return False, f"their ids are not those that were given; {_COMPACT}"
    try:
        for _, vectors, _ in records.vectors.added(0):
            total += len(vectors)
            is_unit = vectors.shape[1] == dims and np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3
            non_unit_count += int(len(vectors) - np.count_nonzero(is_unit))
    except ValueError:
        return False, f"they have different dimensions; {_REINDEX}"
    if non_unit_count:
        return False, f"{non_unit_count} of {total} are not of unit length; {_REINDEX}"
    if orphans := records.vectors.orphans():
        return False, f"{orphans} of {total} belong to no record with embedded texts; {_COMPACT}"
    if incomplete := _incomplete_records(records):
        return False, f"{incomplete} records lack vectors, or have others' vectors; {_REINDEX}"
    return True, f"{total} vectors of {dims} dimensions"


def _incomplete_records(records: Records) -> int:
    """The number of records whose vectors are not as many as their texts, or are filed under another namespace."""
    stored = Counter(records.vectors.owners())
    count = last = 0
    while page := records.indexed(last):
        for record, _, value, fields in page:
            texts = sum(bool(text) for path in fields for text in get_text_at_path(value, path))
            count += stored.pop(record, 0) != texts
            last = record
    return count


def check_index(records: Records, folder: Path) -> tuple[bool, str]:
    """Whether the saved index holds the same vectors as the records, as far as it reaches.

    Args:
        records: The records.
        folder: The folder of the saved indexes.
    """
    saved = newest(folder)
    if saved is None:
        needs_index = records.count("vectors") > EXACT_UP_TO
        return True, "the next search builds it" if needs_index else "not needed for so few vectors"
    index = newest_index(folder, **records.identity())
    if index is None or index.manifest is None:
        return False, (
            "it is damaged or belongs to other records, as after one of them was restored from a copy; searches do not "
            f"use it; {_COMPACT}"
        )
    faults = _differences(records, saved, index.manifest)
    if faults:
        return False, f"{', '.join(faults)}; {_COMPACT}"
    return True, f"{index.manifest.count} vectors"


def _differences(records: Records, saved: Path, manifest: Manifest) -> list[str]:
    """How an index differs from the records up to its last vector and its last removal."""
    lookup, ids, spaces = saved_vectors(saved)
    _, removed_ids = records.vectors.removed(manifest.removals)
    removed_since = set() if removed_ids is None else set(removed_ids.tolist())
    missing = different = indexed = 0
    for current_ids, vectors, current_spaces in records.vectors.added(0):
        is_covered = current_ids <= manifest.upto
        is_indexed = is_covered & np.isin(current_ids, ids)
        missing += int(np.count_nonzero(is_covered & ~is_indexed))
        indexed += int(np.count_nonzero(is_indexed))
        different += _different(
            lookup, spaces, current_ids[is_indexed], vectors[is_indexed], current_spaces[is_indexed]
        )
    dead = sum(i in removed_since for i in ids.tolist())
    counts = {
        "vectors of records are missing": missing,
        "vectors belong to no record": len(ids) - indexed - dead,
        "vectors differ from the records'": different,
    }
    return [f"{count} {fault}" for fault, count in counts.items() if count]


def _different(
    lookup: Any,
    spaces: NDArray[np.int32],
    ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
    current_spaces: NDArray[np.int32],
) -> int:
    """The number of vectors that have another content or namespace in the index."""
    if not len(ids):
        return 0
    is_same = np.abs(lookup(ids) - vectors).max(axis=1) <= _TOLERANCE
    return int(np.count_nonzero(~(is_same & (spaces[ids] == current_spaces))))
