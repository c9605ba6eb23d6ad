"""What a batch leaves for other tools: a Parquet index, and data sets in the layouts that trainers and loaders read."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gems.bulk.export_folder import check_target, lock_draft, publish, remove_abandoned_drafts
from gems.bulk.limits import usage_of
from gems.bulk.results import (
    AttemptFields,
    BatchRow,
    ResultsFile,
    best_attempt_of,
    check_folder,
    is_verified,
    read_manifest,
    saved_jobs,
)
from gems.errors import InputError
from gems.files import atomic_replacement
from gems.graph.state import Requirement, Usage
from gems.json_text import strict_json
from gems.memory.image_store import ImageStore, read_from, stores_beside, without_foreign_chunks
from gems.paths import make_folder

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import BaseModel

_T = TypeVar("_T")

__all__ = ["FORMATS", "Exported", "export", "write_index"]

_ROWS_PER_GROUP: Final = 1000
"""Rows in a row group of the index. One group at a time is in memory."""
_PAIRS_PER_GROUP: Final = 200
"""Preference pairs in a row group. They contain their images."""
_SHARD_BYTES: Final = 500_000_000
"""The approximate size of a WebDataset shard, which its authors recommend for disks and buckets."""


# --- the index -------------------------------------------------------------------------------------------------------


def _verdicts_type() -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string()), ("confidence", pa.float64())]))


def _struct_of(model: type[BaseModel]) -> pa.DataType:
    """The type of a model's fields. It is not written out, since pyarrow drops in silence what a type does not name."""
    import pyarrow as pa

    types: dict[object, pa.DataType] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return pa.struct([(name, types.get(f.annotation, pa.string())) for name, f in model.model_fields.items()])


def _index_schema() -> pa.Schema:
    import pyarrow as pa

    attempt = pa.struct(
        [
            ("round", pa.int32()),
            ("candidate", pa.int32()),
            ("strategy", pa.string()),
            ("prompt", pa.string()),
            ("negative_prompt", pa.string()),
            ("seed", pa.int64()),
            ("score", pa.float64()),
            ("passed", pa.int32()),
            ("total", pa.int32()),
            ("verified", pa.bool_()),
            ("image", pa.string()),
            ("sha256", pa.string()),
            ("verdicts", _verdicts_type()),
            ("edited_from", pa.string()),
            ("quality", pa.float64()),
            ("flaws", pa.string()),
        ]
    )
    return pa.schema(
        [
            ("index", pa.int64()),
            ("id", pa.string()),
            ("prompt", pa.string()),
            ("seed", pa.int64()),
            ("outcome", pa.string()),
            ("solved", pa.bool_()),
            ("score", pa.float64()),
            ("rounds", pa.int32()),
            ("image", pa.string()),
            ("sha256", pa.string()),
            ("quality", pa.float64()),
            ("flaws", pa.string()),
            ("best", pa.int32()),
            ("requirements", pa.list_(_struct_of(Requirement))),
            ("attempts", pa.list_(attempt)),
            ("usage", _struct_of(Usage)),
            ("seconds", pa.float64()),
            ("at", pa.string()),
            ("error", pa.string()),
            ("errors", pa.list_(pa.string())),
            ("notes", pa.list_(pa.string())),
            ("error_kind", pa.string()),
            ("stopped_by_total", pa.string()),
            ("line", pa.int64()),
            ("copy", pa.int64()),
            ("run_id", pa.string()),
            ("thread", pa.string()),
            ("bound_to", pa.string()),
            ("folder", pa.string()),
            ("skills", pa.list_(pa.string())),
            ("memories", pa.list_(pa.string())),
        ]
    )


def write_index(out: Path, record: ResultsFile, images: str | None = None) -> Path:
    """Write ``index.parquet``: a row for each prompt that has a result, with all its attempts and verdicts.

    Args:
        out: The batch's folder.
        record: The batch's results.
        images: The location of the batch's images. None: ``images`` in its folder. The rows name them there: an address
            in the results is not handed on.

    Returns:
        The file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = ImageStore(images or out / "images", create=False)
    rows = record.rows(saved_jobs(out))
    schema, path = _index_schema(), out / "index.parquet"
    with (
        atomic_replacement(path) as draft,
        draft.open("wb") as file,  # a file, since pyarrow may take a path for an address
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for group in _groups(rows, _ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist([_index_row(row, store) for row in group], schema=schema))
    return path


def _index_row(row: BatchRow, images: ImageStore) -> dict[str, Any]:
    best = best_attempt_of(row)
    return {
        **row,
        "solved": row.get("outcome") == "solved",
        "image": best and images.address(best["sha256"]),
        "sha256": best and best["sha256"],
        **(_looks(best) if best else {}),
        "usage": dict(usage_of(row)) if "usage" in row else None,
        "attempts": [
            {
                **attempt,
                **_looks(attempt),
                "verified": is_verified(row, attempt),
                "negative_prompt": attempt.get("negative_prompt", ""),
                "image": images.address(attempt["sha256"]),
                "verdicts": _verdicts(row, attempt),
            }
            for attempt in row.get("attempts", [])
        ],
    }


def _looks(attempt: AttemptFields) -> dict[str, Any]:
    """An attempt's quality, one half where it is unknown, and its flaws."""
    return {"quality": attempt.get("quality", 0.5), "flaws": attempt.get("flaws", "")}


def _verdicts(row: BatchRow, attempt: AttemptFields) -> list[dict[str, Any]]:
    questions = {requirement["id"]: requirement["question"] for requirement in row.get("requirements", [])}
    return [
        {"question": questions.get(key, key), "answer": answer, "confidence": confidence}
        for key, (answer, confidence) in attempt["verdicts"].items()
    ]


# --- data sets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export has written."""

    folder: Path
    examples: int
    skipped: int
    """Prompts without an example: unsolved prompts, or prompts without a pair."""
    unverified: int = 0
    """Images that could be in no pair, since they have not an answer to every requirement."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which examples an export takes."""

    solved: bool = True
    """Take only prompts whose requirements all passed."""
    margin: float = 0.1
    """The least difference in score between a pair's chosen image and its rejected one."""
    pairs: int = 1
    """The most pairs of a prompt."""


def export(
    source: Path,
    kind: str,
    target: Path,
    choice: Choice | None = None,
    *,
    images: str | None = None,
    on_row: Callable[[], None] = lambda: None,
) -> Exported:
    """Write a batch's results as a data set of one of ``FORMATS``.

    The folder appears once it is complete. Until then, what was there before stays.

    Args:
        source: The batch's folder.
        kind: The name of the format.
        target: A new or empty folder, or that of an earlier export, whose files are replaced.
        choice: Which results become examples. None: the defaults of ``Choice``.
        images: The location of the batch's images, if they are not in its folder. None: ``GEMS_IMAGES``, or else the
            GEMS home folder. The addresses in the results are not opened.
        on_row: Called after each prompt.

    Raises:
        InputError: There is no such batch or format, nothing to export, or ``target`` holds other files.
        BackendError: An image is missing or damaged.
    """
    if kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; choose from: {', '.join(FORMATS)}")
    check_folder(source)
    check_target(target)
    jobs = saved_jobs(source)
    record = ResultsFile(source / "results.jsonl", bound_to=read_manifest(source)["bound_to"])
    prompts = unverified = 0

    def rows() -> Iterator[BatchRow]:
        nonlocal prompts, unverified
        for row in record.rows(jobs):
            prompts += 1
            if kind == "preferences":
                unverified += sum(not is_verified(row, attempt) for attempt in row.get("attempts", []))
            yield row
            on_row()

    folder = target.resolve()  # a link to a folder is that folder
    make_folder(folder.parent)
    remove_abandoned_drafts(folder)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    lock = lock_draft(draft)
    try:
        examples, exported_prompts = FORMATS[kind](rows(), _Images(source, images), draft, choice or Choice())
        if not examples:
            images_left_out = f" ({unverified:,} images have no verdict on every requirement)" if unverified else ""
            raise InputError(f"{source} has nothing for {kind}: {_WHY_EMPTY[kind]}{images_left_out}")
        publish(draft, folder, {"format": kind, "batch": str(source), "examples": examples})
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)
    return Exported(target, examples, prompts - exported_prompts, unverified)


_WHY_EMPTY: Final = {
    "webdataset": "no prompt was solved; use --all to export the best image of each prompt",
    "imagefolder": "no prompt was solved; use --all to export the best image of each prompt",
    "preferences": "no prompt has two images whose scores differ by --margin; use more rounds or candidates",
}


def _best_images(rows: Iterable[BatchRow], choice: Choice) -> Iterator[tuple[BatchRow, AttemptFields]]:
    """The prompts whose best image is an example, each with that image's attempt."""
    for row in rows:
        best = best_attempt_of(row)
        if best is not None and (row.get("outcome") in ("solved", "accepted") or not choice.solved):
            yield row, best


def _metadata(row: BatchRow, attempt: AttemptFields) -> dict[str, Any]:
    """The metadata of an example."""
    return {
        "index": row["index"],
        "id": row.get("id"),
        "prompt": row["prompt"],
        "drawn_prompt": attempt["prompt"],
        "negative_prompt": attempt.get("negative_prompt", ""),
        "seed": attempt["seed"],
        "score": attempt["score"],
        "verified": is_verified(row, attempt),
        "solved": row.get("outcome") == "solved",
        "sha256": attempt["sha256"],
        "verdicts": _verdicts(row, attempt),
        **_looks(attempt),
    }


class _Images:
    """Reads a batch's images by their hashes, from ``images`` beside the results or else from the configured store."""

    def __init__(self, source: Path, url: str | None) -> None:
        self._stores = stores_beside(source, url)

    def read(self, attempt: AttemptFields) -> bytes:
        return without_foreign_chunks(read_from(self._stores, attempt["sha256"], attempt["image"]))


def _webdataset(rows: Iterable[BatchRow], images: _Images, folder: Path, choice: Choice) -> tuple[int, int]:
    """Shards of KEY.png, KEY.txt and KEY.json, as WebDataset reads them (github.com/webdataset/webdataset)."""
    examples, total = _best_images(rows, choice), 0
    for shard in count():
        path = folder / f"gems-{shard:06d}.tar"
        size, n = _write_shard(path, examples, images)
        total += n
        if not size:
            path.unlink()
        if size < _SHARD_BYTES:
            break
    return total, total


def _write_shard(path: Path, examples: Iterator[tuple[BatchRow, AttemptFields]], images: _Images) -> tuple[int, int]:
    """Write examples until the shard is full. Returns its bytes, and how many examples it has."""
    size = n = 0
    with tarfile.open(path, "w") as archive:
        while size < _SHARD_BYTES and (example := next(examples, None)):
            row, best = example
            metadata = strict_json(_metadata(row, best), ensure_ascii=False)
            parts = {"png": images.read(best), "txt": row["prompt"].encode(), "json": metadata.encode()}
            for suffix, data in parts.items():
                entry = tarfile.TarInfo(f"{row['index']:09d}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
                size += len(data)
            n += 1
    return size, n


def _imagefolder(rows: Iterable[BatchRow], images: _Images, folder: Path, choice: Choice) -> tuple[int, int]:
    """``train/*.png`` with a ``metadata.jsonl``, as Hugging Face datasets' ImageFolder reads it."""
    train, n = folder / "train", 0
    train.mkdir()
    with (train / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for row, best in _best_images(rows, choice):
            name = f"{row['index']:09d}.png"
            (train / name).write_bytes(images.read(best))
            metadata = {"file_name": name, **_metadata(row, best), "text": row["prompt"]}
            file.write(strict_json(metadata, ensure_ascii=False) + "\n")
            n += 1
    return n, n


def _preferences(rows: Iterable[BatchRow], images: _Images, folder: Path, choice: Choice) -> tuple[int, int]:
    """A Parquet file of pairs in Pick-a-Pic's columns, which trainers of Diffusion-DPO (arXiv 2311.12908) read.

    ``jpg_0`` and ``jpg_1`` are the bytes of images, ``label_0`` is 1 if the first one is better, and ``caption`` is the
    prompt. The better image comes first or second at random, by the prompt's seed, so that its position says nothing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, n, prompts = _pair_schema(), 0, set[int]()
    (folder / "data").mkdir()
    path = folder / "data" / "train-00000.parquet"
    with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="none") as writer:
        for group in _groups(_pair_rows(rows, images, choice), _PAIRS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            n += len(group)
            prompts.update(pair["index"] for pair in group)
    return n, len(prompts)


def _pair_schema() -> pa.Schema:
    import pyarrow as pa

    types = {
        "jpg": pa.binary(),
        "label": pa.int64(),
        "sha256": pa.string(),
        "score": pa.float64(),
        "drawn_prompt": pa.string(),
        "negative_prompt": pa.string(),
        "verdicts": _verdicts_type(),
        "quality": pa.float64(),
        "flaws": pa.string(),
    }
    sides = [(f"{name}_{side}", type_) for side in (0, 1) for name, type_ in types.items()]
    return pa.schema([("caption", pa.string()), ("index", pa.int64()), ("id", pa.string()), *sides])


def _pair_rows(rows: Iterable[BatchRow], images: _Images, choice: Choice) -> Iterator[dict[str, Any]]:
    for row in rows:
        rng = random.Random(row["seed"])
        for better, worse in islice(_pairs(row, choice.margin), choice.pairs):
            columns: dict[str, Any] = {"caption": row["prompt"], "index": row["index"], "id": row.get("id")}
            for side, attempt in enumerate((better, worse) if rng.random() < 0.5 else (worse, better)):
                columns |= {
                    f"jpg_{side}": images.read(attempt),
                    f"label_{side}": int(attempt is better),
                    f"sha256_{side}": attempt["sha256"],
                    f"score_{side}": attempt["score"],
                    f"drawn_prompt_{side}": attempt["prompt"],
                    f"negative_prompt_{side}": attempt.get("negative_prompt", ""),
                    f"verdicts_{side}": _verdicts(row, attempt),
                    **{f"{name}_{side}": value for name, value in _looks(attempt).items()},
                }
            yield columns


def _pairs(row: BatchRow, margin: float) -> Iterator[tuple[AttemptFields, AttemptFields]]:
    """A prompt's pairs of a better and a worse attempt, the greatest difference first. Each attempt is in one pair.

    Attempts without an answer to every requirement are in none: what was not looked at is not worse.
    """
    verified = [attempt for attempt in row.get("attempts", []) if is_verified(row, attempt)]
    attempts = sorted(verified, key=lambda a: (a["passed"], a["score"]), reverse=True)
    for better, worse in zip(attempts, reversed(attempts), strict=True):
        is_clear = better["score"] - worse["score"] >= margin and better["passed"] > worse["passed"]
        if not is_clear or better["sha256"] == worse["sha256"]:
            return
        yield better, worse


FORMATS: Final[dict[str, Callable[[Iterable[BatchRow], _Images, Path, Choice], tuple[int, int]]]] = {
    "webdataset": _webdataset,
    "imagefolder": _imagefolder,
    "preferences": _preferences,
}
"""What ``gems export --to`` takes. Each function returns how many examples it wrote, and of how many prompts."""


def _groups(rows: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(rows)
    while group := list(islice(iterator, size)):
        yield group
