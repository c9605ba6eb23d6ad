"""What a bulk run leaves for others: a Parquet index, and data sets in the layouts that trainers and loaders read."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gems.bulk.results import AttemptFields, BatchRow, ResultsFile, best_attempt_of, saved_jobs
from gems.errors import InputError
from gems.files import atomic_replacement
from gems.memory.image_store import read_image

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")

__all__ = ["FORMATS", "Exported", "export", "write_index"]

_GROUP: Final = 1000
"""Rows in a group of a Parquet file: what is in memory at a time."""
_PAIRS: Final = 200
"""The same for preference pairs, which carry their images."""
_SHARD: Final = 500_000_000
"""Bytes in a WebDataset shard, about: what its authors recommend for reading from disks and buckets."""


# --- the index -------------------------------------------------------------------------------------------------------


def _verdicts_type() -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string()), ("confidence", pa.float64())]))


def _index_schema() -> pa.Schema:
    import pyarrow as pa

    usage = pa.struct(
        [
            ("chat_calls", pa.int64()),
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("images", pa.int64()),
            ("seconds", pa.float64()),
        ]
    )
    attempt = pa.struct(
        [
            ("round", pa.int32()),
            ("candidate", pa.int32()),
            ("strategy", pa.string()),
            ("prompt", pa.string()),
            ("seed", pa.int64()),
            ("score", pa.float64()),
            ("image", pa.string()),
            ("sha256", pa.string()),
            ("verdicts", _verdicts_type()),
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
            ("best", pa.int32()),
            ("attempts", pa.list_(attempt)),
            ("usage", usage),
            ("seconds", pa.float64()),
            ("at", pa.string()),
            ("error", pa.string()),
        ]
    )


def write_index(out: Path, record: ResultsFile) -> Path:
    """Write ``index.parquet``: a row for each prompt that has a result, with all its attempts and verdicts.

    Args:
        out: The batch's folder.
        record: Its results.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = record.rows(saved_jobs(out))
    schema, path = _index_schema(), out / "index.parquet"
    with atomic_replacement(path) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        for group in _groups(rows, _GROUP):
            writer.write_table(pa.Table.from_pylist([_index_row(row) for row in group], schema=schema))
    return path


def _index_row(row: BatchRow) -> dict[str, Any]:
    best = best_attempt_of(row)
    own_id = row.get("id")
    return {
        **row,
        "id": own_id if own_id is None or isinstance(own_id, str) else json.dumps(own_id),
        "solved": row.get("outcome") == "solved",
        "image": best and best["image"],
        "sha256": best and best["sha256"],
        "attempts": [{**a, "verdicts": _verdicts(row, a)} for a in row.get("attempts", [])],
    }


def _verdicts(row: BatchRow, attempt: AttemptFields) -> list[dict[str, Any]]:
    questions = {r["id"]: r["question"] for r in row.get("requirements", [])}
    return [
        {"question": questions.get(key, key), "answer": answer, "confidence": confidence}
        for key, (answer, confidence) in attempt["verdicts"].items()
    ]


# --- data sets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    folder: Path
    examples: int
    skipped: int
    """Prompts without an example: unsolved ones, or those that make no pair."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which examples an export takes."""

    solved: bool = True
    """Only prompts of which every requirement passed."""
    margin: float = 0.1
    """How much better a pair's chosen image has to be scored than its rejected one."""
    pairs: int = 1
    """Most pairs of a prompt."""


def export(
    source: Path, kind: str, target: Path, choice: Choice | None = None, *, on_row: Callable[[], None] = lambda: None
) -> Exported:
    """Write a batch's results as a data set of one of ``FORMATS``.

    The folder appears when it is whole: what was there before is kept until then.

    Args:
        source: The batch's folder.
        kind: The format's name.
        target: A folder that is not there yet, or was written by an export.
        choice: Which examples.
        on_row: Called after each prompt.

    Raises:
        InputError: There is no such batch, nothing to export, or the target is in the way.
        BackendError: An image is gone or damaged.
    """
    if kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; there are {', '.join(FORMATS)}")
    if target.exists() and not (target / _MARK).exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already, and no export; choose another folder")
    jobs, record = saved_jobs(source), ResultsFile(source / "results.jsonl")
    images, seen = _Images(source), 0

    def rows() -> Iterator[BatchRow]:
        nonlocal seen
        for row in record.rows(jobs):
            seen += 1
            yield row
            on_row()

    with atomic_replacement(target) as draft:
        draft.mkdir(parents=True)
        examples, prompts = FORMATS[kind](rows(), images, draft, choice or Choice())
        if not examples:
            raise InputError(f"{source} has nothing for {kind}: {_WHY[kind]}")
        (draft / _MARK).write_text(json.dumps({"format": kind, "batch": str(source), "examples": examples}))
        if target.exists():
            shutil.rmtree(target)
    return Exported(target, examples, seen - prompts)


_MARK: Final = ".gems-export.json"
_WHY: Final = {
    "webdataset": "no prompt was solved; --all takes the best image of each",
    "imagefolder": "no prompt was solved; --all takes the best image of each",
    "preferences": "no prompt has two images of which one is better by --margin; more rounds or candidates make them",
}


def _shown(rows: Iterable[BatchRow], choice: Choice) -> Iterator[tuple[BatchRow, AttemptFields]]:
    """The prompts whose best image is an example, with that image's attempt."""
    for row in rows:
        best = best_attempt_of(row)
        if best is not None and (row.get("outcome") in ("solved", "accepted") or not choice.solved):
            yield row, best


def _about(row: BatchRow, attempt: AttemptFields) -> dict[str, Any]:
    """What is told of an image, in every format."""
    return {
        "index": row["index"],
        "id": row.get("id"),
        "prompt": row["prompt"],
        "drawn_prompt": attempt["prompt"],
        "seed": attempt["seed"],
        "score": attempt["score"],
        "solved": row.get("outcome") == "solved",
        "sha256": attempt["sha256"],
        "verdicts": _verdicts(row, attempt),
    }


class _Images:
    """Reads a batch's images, checked by their hash: beside the record, if it was moved, else where they were put."""

    def __init__(self, source: Path) -> None:
        self._beside = source.absolute() / "images"

    def read(self, attempt: AttemptFields) -> bytes:
        digest = attempt["sha256"]
        here = self._beside / digest[:2] / f"{digest}.png"
        return read_image(here.as_uri() if here.exists() else attempt["image"], digest)


def _webdataset(rows: Iterable[BatchRow], images: _Images, folder: Path, choice: Choice) -> tuple[int, int]:
    """Shards of KEY.png, KEY.txt and KEY.json, as WebDataset reads them (github.com/webdataset/webdataset)."""
    n, examples = 0, _shown(rows, choice)
    for shard in count():
        path, size = folder / f"gems-{shard:06d}.tar", 0
        with tarfile.open(path, "w") as archive:
            while size < _SHARD and (example := next(examples, None)):
                row, best = example
                about = json.dumps(_about(row, best), ensure_ascii=False)
                parts = {"png": images.read(best), "txt": row["prompt"].encode(), "json": about.encode()}
                for name, data in parts.items():
                    entry = tarfile.TarInfo(f"{row['index']:09d}.{name}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
                    size += len(data)
                n += 1
        if not size:
            path.unlink()
        if size < _SHARD:
            break
    return n, n


def _imagefolder(rows: Iterable[BatchRow], images: _Images, folder: Path, choice: Choice) -> tuple[int, int]:
    """``train/*.png`` with a ``metadata.jsonl``, as Hugging Face datasets' ImageFolder reads it."""
    train, n = folder / "train", 0
    train.mkdir()
    with (train / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for row, best in _shown(rows, choice):
            name = f"{row['index']:09d}.png"
            (train / name).write_bytes(images.read(best))
            own_id = row.get("id")
            about = {**_about(row, best), "id": None if own_id is None else str(own_id), "text": row["prompt"]}
            file.write(json.dumps({"file_name": name, **about}, ensure_ascii=False) + "\n")
            n += 1
    return n, n


def _preferences(rows: Iterable[BatchRow], images: _Images, folder: Path, choice: Choice) -> tuple[int, int]:
    """Parquet files of pairs in Pick-a-Pic's columns, which trainers of Diffusion-DPO (arXiv 2311.12908) read.

    ``jpg_0`` and ``jpg_1`` are the bytes of images, ``label_0`` is 1 where the first is the better one, ``caption`` is
    the prompt. Which comes first is drawn at random, by the prompt's seed, so that the place tells nothing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sides = [
        (f"{name}_{side}", kind)
        for side in (0, 1)
        for name, kind in (
            ("jpg", pa.binary()),
            ("label", pa.int64()),
            ("sha256", pa.string()),
            ("score", pa.float64()),
            ("drawn_prompt", pa.string()),
            ("verdicts", _verdicts_type()),
        )
    ]
    schema = pa.schema([("caption", pa.string()), ("index", pa.int64()), *sides])
    (folder / "data").mkdir()
    n, prompts = 0, set()

    def examples() -> Iterator[dict[str, Any]]:
        nonlocal n
        for row in rows:
            rng = random.Random(row["seed"])
            for pair in islice(_pairs(row, choice.margin), choice.pairs):
                first_is_better = rng.random() < 0.5
                example: dict[str, Any] = {"caption": row["prompt"], "index": row["index"]}
                for side, attempt in enumerate(pair if first_is_better else reversed(pair)):
                    example |= {
                        f"jpg_{side}": images.read(attempt),
                        f"label_{side}": int(first_is_better == (side == 0)),
                        f"sha256_{side}": attempt["sha256"],
                        f"score_{side}": attempt["score"],
                        f"drawn_prompt_{side}": attempt["prompt"],
                        f"verdicts_{side}": _verdicts(row, attempt),
                    }
                n += 1
                prompts.add(row["index"])
                yield example

    with pq.ParquetWriter(folder / "data" / "train-00000.parquet", schema, compression="none") as writer:
        for group in _groups(examples(), _PAIRS):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return n, len(prompts)


def _pairs(row: BatchRow, margin: float) -> Iterator[tuple[AttemptFields, AttemptFields]]:
    """A prompt's pairs of attempts, (chosen, rejected), those furthest apart first; each attempt once."""
    attempts = sorted(row.get("attempts", []), key=lambda a: (a["passed"], a["score"]), reverse=True)
    for better, worse in zip(attempts, reversed(attempts), strict=True):
        clear = better["score"] - worse["score"] >= margin and better["passed"] > worse["passed"]
        if not clear or better["sha256"] == worse["sha256"]:
            return
        yield better, worse


FORMATS: Final[dict[str, Callable[[Iterable[BatchRow], _Images, Path, Choice], tuple[int, int]]]] = {
    "webdataset": _webdataset,
    "imagefolder": _imagefolder,
    "preferences": _preferences,
}
"""What ``gems export --to`` takes."""


def _groups(rows: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(rows)
    while group := list(islice(iterator, size)):
        yield group
