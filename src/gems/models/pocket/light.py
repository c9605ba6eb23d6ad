"""The pocket pipeline without diffusers and transformers, by which GEMS itself draws: the same images, sooner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from gems.models.pocket.denoiser import Denoiser
from gems.models.pocket.drawing import Drawing
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import decode_slots
from gems.models.pocket.text_encoder import TextEncoder

__all__ = ["EulerSchedule", "PocketPipeline"]

_Module = TypeVar("_Module", bound=nn.Module)

_TIMESTEPS: Final = 1000
"""Timesteps of training, as in the scheduler's configuration."""


class EulerSchedule:
    """What ``diffusers.FlowMatchEulerDiscreteScheduler`` does without a shift: Euler steps from noise to slots."""

    def set_timesteps(self, steps: int, device: torch.device | None = None) -> None:
        """Divide the way from noise, 1, to the least noise that was trained; then comes 0."""
        least = float(np.float32(1) / np.float32(_TIMESTEPS))
        levels = np.linspace(_TIMESTEPS, _TIMESTEPS * least, steps) / _TIMESTEPS
        levels_ = torch.from_numpy(levels).to(device=device, dtype=torch.float32)
        self.timesteps = levels_ * _TIMESTEPS
        self.sigmas = torch.cat([levels_, torch.zeros(1, device=device)])
        self._step = 0

    def step(self, velocity: Tensor, timestep: Tensor, slots: Tensor) -> SimpleNamespace:
        """One step along the velocity. The timesteps come in their order."""
        change = self.sigmas[self._step + 1] - self.sigmas[self._step]
        self._step += 1
        return SimpleNamespace(prev_sample=slots + change * velocity)


class PocketPipeline(Drawing):
    """The pocket pipeline in a folder of weights."""

    def __init__(self, tokenizer: Tokenizer, text_encoder: TextEncoder, transformer: Denoiser, size: int) -> None:
        self._words, self.text_encoder, self.transformer = tokenizer, text_encoder, transformer
        self.scheduler = EulerSchedule()
        self.decoder = lambda slots, style: draw_scene(decode_slots(slots), style=style, size=size)

    @classmethod
    def from_pretrained(cls, folder: str) -> Self:
        """Load a folder that ``pipeline.PocketPipeline`` has saved.

        Raises:
            OSError: A file is missing.
            SafetensorError: The weights are damaged.
        """
        path = Path(folder)
        encoder = path / "text_encoder"
        text_encoder = _with_weights(TextEncoder(_read(encoder / "config.json")), encoder / "model.safetensors")
        config = _read(path / "transformer" / "config.json")
        denoiser = Denoiser(**{name: value for name, value in config.items() if not name.startswith("_")})
        transformer = _with_weights(denoiser, path / "transformer" / "diffusion_pytorch_model.safetensors")
        tokenizer = Tokenizer.from_file(str(path / "tokenizer" / "tokenizer.json"))
        return cls(tokenizer, text_encoder, transformer, _read(path / "decoder" / "preprocessor_config.json")["size"])

    @property
    def words(self) -> Tokenizer:
        """The tokenizer."""
        return self._words

    def to(self, device: str) -> Self:
        """Move the weights to a device."""
        self.text_encoder.to(device)
        self.transformer.to(device)
        return self

    @property
    def _execution_device(self) -> torch.device:
        device: torch.device = next(self.transformer.parameters()).device
        return device

    @contextmanager
    def progress_bar(self, total: int) -> Iterator[SimpleNamespace]:
        """No bar, behind the interface of one."""
        yield SimpleNamespace(update=lambda: None)

    def maybe_free_model_hooks(self) -> None:
        """Do nothing: the weights stay where they are."""


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _with_weights(module: _Module, file: Path) -> _Module:
    module.load_state_dict(load_file(file))
    return module.eval()
