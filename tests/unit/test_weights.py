from __future__ import annotations

import pytest

from gems.graph.errors import BackendError
from gems.models.pocket.weights import GENERATOR, VISION, folder_fingerprint, weights_folder


def test_the_shipped_weights_are_there_and_small() -> None:
    size = 0
    for name in (GENERATOR, VISION):
        folder = weights_folder(name)
        assert len(folder_fingerprint(folder)) == 64
        size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 16 * 2**20


def test_missing_weights_are_named_and_not_retried() -> None:
    with pytest.raises(BackendError, match="pocket unicorn model's weights are missing") as caught:
        weights_folder("unicorn")
    assert not caught.value.retryable
