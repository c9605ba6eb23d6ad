from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from gems.errors import BackendError, InputError
from gems.memory.image_store import ImageStore, encode_png, read_metadata

META = {"parameters": "two cats\nSeed: 1", "gems": '{"prompt": "zwei Kätzchen ☃"}'}


def test_what_is_put_is_read(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    ref = store.put(Image.new("RGB", (20, 10), "red"), META)
    assert (ref.width, ref.height, ref.media_type) == (20, 10, "image/png")
    assert store.open(ref).convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    assert read_metadata(store.read(ref)) == META


def test_the_same_image_is_one_file_whoever_writes_it(tmp_path: Path) -> None:
    first = ImageStore(tmp_path).put(Image.new("RGB", (4, 4)), META)
    second = ImageStore(str(tmp_path)).put(Image.new("RGB", (4, 4)), META)
    other = ImageStore(tmp_path).put(Image.new("RGB", (4, 4)), {"parameters": "x"})
    assert first == second != other
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_a_reference_is_good_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ref = ImageStore("relative").put(Image.new("RGB", (4, 4)), {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ImageStore(tmp_path / "another").read(ref)


def test_on_another_file_system() -> None:
    store = ImageStore("memory://images")
    ref = store.put(Image.new("RGB", (4, 4)), {})
    assert ref.uri.startswith("memory://")
    assert store.read(ref)


def test_damage_and_loss_are_noticed(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    ref = store.put(Image.new("RGB", (4, 4)), {})
    file = next(tmp_path.rglob("*.png"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BackendError, match="damaged"):
        store.read(ref)
    file.unlink()
    with pytest.raises(BackendError, match="cannot be read") as caught:
        store.read(ref)
    assert not caught.value.retryable


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"):
        ImageStore(tmp_path / "file" / "images")
    with pytest.raises(InputError):
        ImageStore("nosuchprotocol://x")


def test_png_bytes_repeat() -> None:
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    assert encode_png(image, META) == encode_png(image.copy(), dict(META))
