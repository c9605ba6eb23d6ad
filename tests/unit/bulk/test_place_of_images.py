"""A batch goes on where its earlier images are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from gems.bulk.batch import check_place_of_images
from gems.errors import InputError
from gems.memory.image_store import ImageStore


def test_another_image_store_is_refused_unless_it_holds_the_earlier_images(tmp_path: Path) -> None:
    first, other = ImageStore(tmp_path / "first"), ImageStore(tmp_path / "other")
    ref = first.put(Image.new("RGB", (8, 8)), {})
    drawn = {"attempts": [{"image": ref.uri, "sha256": ref.sha256}]}
    record: Any = SimpleNamespace(rows=lambda jobs: iter([{"error": "no image"}, {"attempts": []}, drawn]))
    check_place_of_images(record, [], first)
    with pytest.raises(InputError) as caught:
        check_place_of_images(record, [], other)
    assert f"were stored in {first.url}, and are not in {other.url}: give the same place" in str(caught.value)
    (tmp_path / "first").rename(tmp_path / "moved")
    check_place_of_images(record, [], ImageStore(tmp_path / "moved"))
    check_place_of_images(record, [], first)  # deleted on purpose: the place is the same
    check_place_of_images(SimpleNamespace(rows=lambda jobs: iter([])), [], other)  # type: ignore[arg-type]
