"""Loading and saving the open vision model: one folder with the weights of its networks, prototypes and calibration."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from gems.models.open.finder import Finder
from gems.models.open.lettering import LineReader
from gems.models.open.namer import Namer
from gems.models.open.sight import Calibration, Eyes
from gems.models.open.weights import VISION, open_weights

__all__ = ["load_eyes", "pretrained", "save_eyes"]

_PARTS = ("finder", "namer", "reader")


def load_eyes(folder: Path) -> Eyes:
    """Load the vision model in a folder."""
    weights = load_file(folder / "model.safetensors")
    networks: list[nn.Module] = [Finder(), Namer(), LineReader()]
    for name, network in zip(_PARTS, networks, strict=True):
        own = {key.removeprefix(f"{name}."): v for key, v in weights.items() if key.startswith(f"{name}.")}
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in own.items()})
    calibration = Calibration(**json.loads((folder / "config.json").read_text(encoding="utf-8"))["calibration"])
    finder, namer, reader = networks
    assert isinstance(finder, Finder)
    assert isinstance(namer, Namer)
    assert isinstance(reader, LineReader)
    return Eyes(finder, namer, weights["prototypes"].float().numpy(), reader, calibration)


def save_eyes(eyes: Eyes, folder: Path) -> None:
    """Write the vision model, as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"prototypes": eyes.prototypes.half()}
    for name, network in zip(_PARTS, (eyes.finder, eyes.namer, eyes.reader), strict=True):
        for key, value in network.state_dict().items():
            weights[f"{name}.{key}"] = (value.half() if value.is_floating_point() else value).contiguous()
    save_file(weights, folder / "model.safetensors")
    config = {"model_type": "gems-open-vision", "calibration": asdict(eyes.calibration)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@cache
def pretrained() -> Eyes:
    """The vision model that comes with the package, loaded once.

    Raises:
        BackendError: Its weights are missing.
    """
    return load_eyes(open_weights(VISION))
