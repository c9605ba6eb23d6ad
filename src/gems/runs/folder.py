"""A run's folder: every image, ``run.json`` and ``report.html``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from gems import paths
from gems.errors import InputError
from gems.files import write_atomically
from gems.memory.image_store import ImageStore
from gems.runs.record import RunRecord
from gems.runs.report import render_report

__all__ = ["RunFolder", "make_folder", "write_run"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of a run's files. ``image`` is None if no image was made."""

    folder: Path
    record: Path
    report: Path
    image: Path | None


def make_folder(folder: Path) -> Path:
    """Make an output folder, for its owner alone if it is in the home folder; check that files can be written to it.

    Raises:
        InputError: They cannot.
    """
    try:
        paths.make_folder(folder)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def write_run(folder: Path, record: RunRecord, images: ImageStore) -> RunFolder:
    """Write a run's folder. Writing it again gives the same files.

    Raises:
        InputError: The folder cannot be written to.
        BackendError: An image is missing from the store.
    """
    make_folder(folder)
    pngs = [images.read(attempt.image) for attempt in record.attempts]
    files = {attempt.file: png for attempt, png in zip(record.attempts, pngs, strict=True)}
    if record.best is not None:
        files["best.png"] = pngs[record.best]
    files["run.json"] = record.to_json().encode()
    files["report.html"] = render_report(record, pngs).encode()
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise _unwritable(folder, error) from error
    image = folder / "best.png" if record.best is not None else None
    return RunFolder(folder, folder / "run.json", folder / "report.html", image)


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot write to {folder} ({error.strerror}); choose another folder with --out")
