"""What a run leaves behind: a folder with every image, ``run.json`` and ``report.html``."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gems import __version__
from gems.errors import InputError
from gems.files import write_atomically
from gems.graph.context import ROLES, GemsContext
from gems.graph.state import Attempt, GemsState, Usage, best_attempt
from gems.memory.embedder import embedder_fingerprint, init_embedder
from gems.memory.image_store import ImageStore
from gems.models.local_weights import load_now
from gems.models.registry import init_image_generator, init_mllm, model_fingerprint
from gems.runs.report import render_report

__all__ = [
    "SCHEMA",
    "Evidence",
    "ModelRecord",
    "load_record",
    "make_folder",
    "model_records",
    "run_record",
    "write_evidence",
]

SCHEMA: Final = 1
"""Version of run.json's layout."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model by name and by what identifies its weights."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a run's evidence lies. ``image`` is None if no image was made."""

    folder: Path
    record: Path
    report: Path
    image: Path | None


def make_folder(folder: Path) -> Path:
    """Make an output folder, and be sure that it can be written to.

    Raises:
        InputError: Something is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error
    return folder


def run_record(
    values: GemsState,
    context: GemsContext,
    models: dict[str, ModelRecord],
    thread: str,
    started: datetime,
    finished: datetime | None = None,
) -> dict[str, Any]:
    """Everything about a run that is not pixels, as JSON. ``finished`` is now unless it is given."""
    attempts = values.get("attempts") or []
    best = best_attempt(attempts)
    return {
        "schema": SCHEMA,
        "gems_version": __version__,
        "run_id": values.get("run_id"),
        "thread": thread,
        "prompt": values["prompt"],
        "outcome": values.get("outcome") or "cancelled",
        "score": best.score if best else 0.0,
        "best": attempts.index(best) if best else None,
        "seed": values.get("seed"),
        "models": {role: asdict(model) for role, model in models.items()},
        "settings": context.model_dump(mode="json"),
        "requirements": [r.model_dump(mode="json") for r in values.get("requirements") or []],
        "checks": [r.model_dump(mode="json") for r in values.get("checks") or []],
        "memories": [m.model_dump(mode="json") for m in values.get("memories") or []],
        "skills": values.get("skills") or [],
        "attempts": [{**a.model_dump(mode="json"), "file": _file_name(a)} for a in attempts],
        "usage": values.get("usage", Usage()).model_dump(mode="json"),
        "errors": values.get("errors") or [],
        "started_at": started.isoformat(timespec="seconds"),
        "finished_at": (finished or datetime.now(UTC)).isoformat(timespec="seconds"),
    }


def write_evidence(folder: Path, record: dict[str, Any], images: ImageStore) -> Evidence:
    """Write a run's folder. Doing it again writes the same files.

    Raises:
        InputError: The folder cannot be written to.
        BackendError: An image is gone from the store.
    """
    make_folder(folder)
    attempts = [Attempt.model_validate({k: v for k, v in a.items() if k != "file"}) for a in record["attempts"]]
    pngs = [images.read(a.image) for a in attempts]
    best = record["best"]
    files = {_file_name(attempt): png for attempt, png in zip(attempts, pngs, strict=True)}
    if best is not None:
        files["best.png"] = pngs[best]
    files["run.json"] = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    files["report.html"] = render_report(record, pngs).encode()
    try:
        for name, data in files.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error
    image = folder / "best.png" if best is not None else None
    return Evidence(folder, folder / "run.json", folder / "report.html", image)


def load_record(where: Path) -> tuple[Path, dict[str, Any]]:
    """A run's folder and its run.json.

    Raises:
        InputError: There is none, or it is not ours.
    """
    path = where / "run.json" if where.is_dir() else where
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}); give a run's folder, such as gems-out/RUN, or its run.json"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give a run's folder or its run.json") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a run of this version of GEMS (schema {SCHEMA})")
    try:
        ModelRecord(**record["models"]["generator"])
        for attempt in record["attempts"]:
            Attempt.model_validate({k: v for k, v in attempt.items() if k != "file"})
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())})") from error
    return path.parent, record


def _file_name(attempt: Attempt) -> str:
    return f"round-{attempt.round}-{attempt.candidate}.png"


def model_records(context: GemsContext, *, load: bool = True) -> dict[str, ModelRecord]:
    """The models of these settings, for a run's record.

    Args:
        context: The settings.
        load: Load them too, so that a run's clock starts with its work.

    Raises:
        InputError: A name is not known, or its package or key is missing.
        BackendError: Weights are not there.
    """
    records, loaded = dict[str, ModelRecord](), list[object]()
    chat_models = {"mllm": context.mllm} | {role: name for role in ROLES if (name := getattr(context, role))}
    for role, name in chat_models.items():
        model = init_mllm(name, context.chat_options, context.authority)
        records[role] = ModelRecord(name, model_fingerprint(model))
        loaded.append(model)
    generator = init_image_generator(context.generator, context.generator_options, context.authority)
    records["generator"] = ModelRecord(context.generator, generator.fingerprint)
    loaded.append(generator)
    embedder = init_embedder(context.embedder) if context.memory else None
    if embedder is not None:
        records["embedder"] = ModelRecord(context.embedder, embedder_fingerprint(embedder))
        loaded.append(embedder)
    for part in loaded if load else ():
        load_now(part)
    return records
