"""The open text-to-image pipeline: a prompt in, 512 x 512 pixels out, on a CPU, in well under a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from gems.models.open.draft_guide import GUIDE, objection
from gems.models.open.kept_things import kept_slots
from gems.models.open.network import OpenModel
from gems.models.open.painting import draw
from gems.models.open.slots import NUM_SLOTS, SLOT_DIM, decode
from gems.models.open.tokens import encode_prompts, tokens_of_prompt
from gems.models.open.wish_reading import language_of_prompt
from gems.models.pocket.light import EulerSchedule, PocketPipeline

__all__ = ["OpenPipeline"]


class OpenPipeline(PocketPipeline):
    """The open pipeline in a folder of weights. It is called as the pocket pipeline is."""

    prompting = GUIDE
    objection = staticmethod(objection)
    _kept_slots = staticmethod(kept_slots)
    slot_shape: ClassVar[tuple[int, int]] = (NUM_SLOTS, SLOT_DIM)

    def __init__(self, model: OpenModel, size: int = 512) -> None:
        self.model, self.size = model.eval(), size
        self.transformer, self.scheduler = model.denoiser, EulerSchedule()

    @classmethod
    def from_pretrained(cls, folder: str) -> Self:
        """Load a folder that ``save_pretrained`` has written.

        Raises:
            OSError: A file is missing.
            SafetensorError: The weights are damaged.
        """
        path = Path(folder)
        config = json.loads((path / "transformer" / "config.json").read_text(encoding="utf-8"))
        model = OpenModel(**config["network"])
        weights = load_file(path / "transformer" / "diffusion_pytorch_model.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        return cls(model, config["size"])

    def save_pretrained(self, folder: str | Path, network: dict[str, int]) -> None:
        """Write the weights, as float16, and the configuration; ``network`` are the arguments of ``OpenModel``."""
        part = Path(folder) / "transformer"
        part.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half().contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, part / "diffusion_pytorch_model.safetensors")
        config = {"_class_name": "OpenModel", "network": network, "size": self.size}
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        index = {"_class_name": "OpenPipeline", "transformer": ["gems.models.open.network", "OpenModel"]}
        (Path(folder) / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def decoder(self, slots: NDArray[np.float32], style: int) -> Image.Image:
        """Draw slots of shape (NUM_SLOTS, SLOT_DIM)."""
        items, background, text = decode(slots)
        return draw(items, background, text=text, style=style, size=self.size)

    def to(self, device: str) -> Self:
        """Move the weights to a device."""
        self.model.to(device)
        return self

    def _fault_of(self, prompt: str) -> str:
        return objection(prompt)

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        rows = [tokens_of_prompt(prompt, language_of_prompt(prompt)) for prompt in prompts]
        ids, vectors, mask = (torch.from_numpy(a).to(self._execution_device) for a in encode_prompts(rows))
        return self.model.encoder.read(ids, vectors, mask), mask
