"""``gems replay``: make a run's images again from its record, and compare them byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gems.errors import InputError
from gems.files import read_regular
from gems.graph.context import GemsContext
from gems.memory.image_store import encode_png
from gems.models.generators import GeneratedImage, ImageGenerator, ImageRequest, is_reproducible, opaque
from gems.models.registry import init_image_generator
from gems.nodes.generator import edit_of, image_metadata
from gems.runs.operator_settings import adopt, check_complete
from gems.runs.record import RunRecord
from gems.seeds import MAX_SEED

__all__ = ["ReplayedAttempt", "replay"]


@dataclass(frozen=True, slots=True)
class ReplayedAttempt:
    """How an attempt, made again, compares with the original.

    Attributes:
        file: The file name of the attempt's image.
        seed: The seed of the attempt.
        same_as_record: Whether the new image has the hash in the record.
        same_as_file: Whether the file in the run's folder holds the same bytes.
    """

    file: str
    seed: int
    same_as_record: bool
    same_as_file: bool

    @property
    def same(self) -> bool:
        """Whether record, file and new image agree."""
        return self.same_as_record and self.same_as_file


def replay(folder: Path, record: RunRecord, operator: GemsContext) -> Iterator[ReplayedAttempt]:
    """Make every attempt of a run again, in order.

    Args:
        folder: The run's folder.
        record: The run's record.
        operator: The operator's settings, which alone name addresses, keys, folders and code.

    Raises:
        InputError: The generator takes no seeds or has other weights than the one that made the run, or the record
            names what only the operator may name, or what no run can hold.
        BackendError: The generator could not make an image.
    """
    _check_attempts(record)
    generator = _same_generator(record, operator)
    images: dict[str, Image.Image] = {}
    """What was made again, by the hash of the original."""
    _check_seeds(generator)
    for attempt in record.attempts:
        edit = None
        if attempt.edited_from:
            source = next(a for a in record.attempts if a.image.sha256 == attempt.edited_from)
            edit = edit_of(source, record.all_requirements, images[attempt.edited_from])
        request = ImageRequest(attempt.prompt, attempt.seed, edit, attempt.negative_prompt)
        [result] = map(opaque, generator.generate([request]))
        if not isinstance(result, GeneratedImage):
            raise result
        _check_seeds(generator)  # a server may have refused the seed just now
        png = encode_png(result.image, image_metadata(result.request, generator, edited_from=attempt.edited_from))
        images[attempt.image.sha256] = result.image
        yield ReplayedAttempt(
            attempt.file,
            attempt.seed,
            same_as_record=hashlib.sha256(png).hexdigest() == attempt.image.sha256,
            same_as_file=_file_bytes(folder, attempt.file) == png,
        )


def _file_bytes(folder: Path, name: str) -> bytes | None:
    """The bytes of an image's file; None if there is none: the folder may be anybody's."""
    try:
        return read_regular(folder / name, within=folder)
    except OSError:
        return None


def _check_attempts(record: RunRecord) -> None:
    """Check, before anything is loaded or drawn, that every attempt can be made again: the record may be anybody's."""
    count, most = len(record.attempts), record.settings.max_rounds * record.settings.images_per_round
    if count > most:
        raise InputError(f"the record has {count:,} images; a run with its settings draws at most {most:,}")
    hashes = set[str]()
    for attempt in record.attempts:
        if attempt.edited_from and attempt.edited_from not in hashes:
            raise InputError(f"{attempt.file} is an edit of an image of another run: such a run cannot be replayed")
        if not 0 <= attempt.seed <= MAX_SEED:
            raise InputError(f"{attempt.file} has the seed {attempt.seed}; seeds are from 0 to {MAX_SEED}")
        hashes.add(attempt.image.sha256)


def _check_seeds(generator: ImageGenerator) -> None:
    if not is_reproducible(generator):
        raise InputError(f"{generator.name} takes no seed, so each image is a new one: such a run cannot be replayed")


def _same_generator(record: RunRecord, operator: GemsContext) -> ImageGenerator:
    """The generator that made the run. Weights are compared before any are loaded.

    Raises:
        InputError: Its weights have changed, or the record names what only the operator may name.
    """
    original = record.models["generator"]
    settings = adopt(record.settings.model_copy(update={"generator": original.name}), operator)
    missing_paths = [path for path in record.operator_settings if path.startswith("generator_options.")]
    settings.authority.check_model(settings.generator, settings.generator_options, "generator_options")
    check_complete(settings, missing_paths, "this run")
    generator = init_image_generator(settings.generator, settings.generator_options, settings.authority)
    if generator.fingerprint != original.fingerprint:
        raise InputError(
            f"the run was made with {original.name} {original.fingerprint[:12]}, but {original.name} is now "
            f"{generator.fingerprint[:12]}: other weights make other images"
        )
    return generator
