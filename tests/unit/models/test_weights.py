from __future__ import annotations

import pytest
from safetensors.torch import load_file

from gems.errors import BackendError
from gems.models.pocket.weights import GENERATOR, VISION, folder_fingerprint, weights_folder
from gems.models.registry import POCKET


def test_the_shipped_weights_are_there_and_small() -> None:
    size = 0
    for name in (GENERATOR, VISION):
        folder = weights_folder(name)
        assert len(folder_fingerprint(folder)) == 64
        size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 16 * 2**20


def test_the_large_generator_is_ten_times_larger() -> None:
    def parameters(name: str) -> int:
        files = weights_folder(POCKET[name]).rglob("*.safetensors")
        return sum(tensor.numel() for file in files for tensor in load_file(file).values())

    assert parameters("pocket-large") >= 10 * parameters("pocket")
    size = sum(f.stat().st_size for f in weights_folder(POCKET["pocket-large"]).rglob("*") if f.is_file())
    assert size < 48 * 2**20


def test_missing_weights_are_named_and_not_retried() -> None:
    with pytest.raises(BackendError, match="pocket unicorn model's weights are missing") as caught:
        weights_folder("unicorn")
    assert not caught.value.retryable
