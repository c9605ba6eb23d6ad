"""The requests and responses of OpenAI's images endpoint, with what GEMS adds.

The format is that of https://platform.openai.com/docs/api-reference/images. ``seed`` is an addition that vLLM-Omni and
SGLang have too, ``gems`` is ours.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gems.seeds import MAX_SEED
from gems.serve.converting import ImageFormat, size_in_pixels
from gems.wording import MAX_PROMPT_LENGTH

__all__ = ["ImageData", "ImagesRequest", "ImagesResponse", "ImagesUsage", "Model", "ModelList", "RunSummary"]

_SHORTEST, _LONGEST = 16, 4096


class ImagesRequest(BaseModel):
    """What to draw."""

    # Clients send the fields of other image models too (quality, style, background): they have no effect here.
    model_config = ConfigDict(extra="ignore")

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_LENGTH, description="What the image should show.")
    model: str = Field(default="", max_length=200, description="See /v1/models; empty for the first.")
    n: int = Field(default=1, ge=1, le=10, description="How many images, each from a run of its own.")
    size: str = Field(default="auto", description="auto, or WIDTHxHEIGHT: the image is scaled to fit in.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="The seed of the first image's run.")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: ImageFormat = "png"
    stream: bool = False
    partial_images: int = Field(
        default=0, ge=0, le=3, description="With stream: the maximum number of earlier attempts to send."
    )

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str) -> str:
        sides = size_in_pixels(size)
        if size != "auto" and not (sides and all(_SHORTEST <= side <= _LONGEST for side in sides)):
            raise ValueError(f"auto, or WIDTHxHEIGHT with sides from {_SHORTEST} to {_LONGEST}")
        return size

    @property
    def pixels(self) -> tuple[int, int] | None:
        """The requested width and height; None for auto."""
        return size_in_pixels(self.size)


class RunSummary(BaseModel):
    """What became of the run. OpenAI's endpoint does not have this."""

    run: str
    outcome: str
    score: float
    rounds: int
    images: int


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str
    gems: RunSummary


class ImagesUsage(BaseModel):
    """The tokens that the chat models used."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]


class ImagesResponse(BaseModel):
    """The images."""

    created: int
    data: list[ImageData]
    size: str = Field(description="WIDTHxHEIGHT of the images as they were sent.")
    output_format: ImageFormat
    usage: ImagesUsage


class Model(BaseModel):
    """A name that a request may give as its model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["gems"] = "gems"
    description: str = Field(default="", description="What it draws, if that is little. OpenAI has no such field.")


class ModelList(BaseModel):
    """The list of models."""

    object: Literal["list"] = "list"
    data: list[Model]
