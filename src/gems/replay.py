"""``gems replay``: makes a run's images again from its record, and compares them byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gems.graph.errors import InputError
from gems.memory.images import encode_png
from gems.models.generators import GeneratedImage, ImageRequest, init_image_generator
from gems.nodes.generator import image_metadata

__all__ = ["Replayed", "replay"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """One attempt, made again."""

    file: str
    seed: int
    same_as_record: bool
    same_as_file: bool

    @property
    def same(self) -> bool:
        """Whether record, file and new image agree."""
        return self.same_as_record and self.same_as_file


def replay(folder: Path, record: dict[str, Any]) -> Iterator[Replayed]:
    """Make every attempt of a run again, in order.

    Raises:
        InputError: The generator at hand is not the one that made them.
        BackendError: It could not make an image.
    """
    made_by = record["models"]["generator"]
    generator = init_image_generator(made_by["name"])
    if generator.fingerprint != made_by["fingerprint"]:
        raise InputError(
            f"the run was made with {made_by['name']} {made_by['fingerprint'][:12]}, "
            f"here is {generator.fingerprint[:12]}: other weights make other images"
        )
    for attempt in record["attempts"]:
        [result] = generator.generate([ImageRequest(attempt["prompt"], attempt["seed"])])
        if not isinstance(result, GeneratedImage):
            raise result
        png = encode_png(result.image, image_metadata(result.request, generator))
        path = folder / attempt["file"]
        yield Replayed(
            attempt["file"],
            attempt["seed"],
            hashlib.sha256(png).hexdigest() == attempt["image"]["sha256"],
            path.exists() and path.read_bytes() == png,
        )
