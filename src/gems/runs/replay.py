"""``gems replay``: makes a run's images again from its record, and compares them byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gems.authority import Authority
from gems.errors import InputError
from gems.graph.state import Attempt, Requirement
from gems.memory.image_store import encode_png
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.registry import init_image_generator
from gems.nodes.generator import edit_of, image_metadata
from gems.options import GeneratorOptions

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


def replay(folder: Path, record: dict[str, Any], authority: Authority) -> Iterator[Replayed]:
    """Make every attempt of a run again, in order.

    Args:
        folder: The run's.
        record: The run's.
        authority: What the operator allows.

    Raises:
        InputError: The generator at hand is not the one that made them.
        BackendError: It could not make an image.
    """
    made_by = record["models"]["generator"]
    options = record["settings"].get("generator_options", {})
    generator = init_image_generator(made_by["name"], GeneratorOptions.model_validate(options), authority)
    if generator.fingerprint != made_by["fingerprint"]:
        raise InputError(
            f"the run was made with {made_by['name']} {made_by['fingerprint'][:12]}, "
            f"here is {generator.fingerprint[:12]}: other weights make other images"
        )
    requirements = [Requirement.model_validate(r) for r in (*record["requirements"], *record.get("checks", []))]
    made: dict[str, Image.Image] = {}
    for attempt in record["attempts"]:
        base, edit = attempt.get("edited_from", ""), None
        if base:
            source = next(a for a in record["attempts"] if a["image"]["sha256"] == base)
            verified = Attempt.model_validate({k: v for k, v in source.items() if k != "file"})
            edit = edit_of(verified, requirements, made[base])
        [result] = generator.generate([ImageRequest(attempt["prompt"], attempt["seed"], edit)])
        if not isinstance(result, GeneratedImage):
            raise result
        png = encode_png(result.image, image_metadata(result.request, generator, edited_from=base))
        made[attempt["image"]["sha256"]] = result.image
        path = folder / attempt["file"]
        yield Replayed(
            attempt["file"],
            attempt["seed"],
            hashlib.sha256(png).hexdigest() == attempt["image"]["sha256"],
            path.exists() and path.read_bytes() == png,
        )
