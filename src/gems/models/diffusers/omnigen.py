"""OmniGen without torchvision, of which it uses four small transforms for the images that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final, TypeAlias

import numpy as np
import torch

__all__ = ["complete_omnigen"]

_Transform: TypeAlias = Callable[[Any], Any]


def complete_omnigen() -> None:
    """Give diffusers' OmniGen what it imports only where torchvision is installed."""
    from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

    if not hasattr(pipeline_omnigen, "OmniGenMultiModalProcessor"):
        vars(processor_omnigen)["transforms"] = _Transforms
        vars(pipeline_omnigen)["OmniGenMultiModalProcessor"] = processor_omnigen.OmniGenMultiModalProcessor


class _Transforms:
    """The transforms of torchvision that OmniGen uses, by their names there."""

    @staticmethod
    def Compose(transforms: Sequence[_Transform]) -> _Transform:  # noqa: N802
        return lambda image: reduce(lambda value, transform: transform(value), transforms, image)

    @staticmethod
    def Lambda(function: _Transform) -> _Transform:  # noqa: N802
        return function

    @staticmethod
    def ToTensor() -> _Transform:  # noqa: N802
        return lambda image: torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255

    @staticmethod
    def Normalize(mean: Sequence[float], std: Sequence[float], inplace: bool) -> _Transform:  # noqa: N802
        shape: Final = (-1, 1, 1)
        return lambda pixels: (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
