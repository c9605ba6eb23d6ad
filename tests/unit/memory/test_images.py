from __future__ import annotations

import io
import threading
from collections import Counter
from pathlib import Path

import pytest
from counting_files import CountingFileSystem, empty_counting_files
from PIL import Image

from gems.errors import BackendError, InputError
from gems.graph.state import ImageRef
from gems.memory.image_cache import ImageCache
from gems.memory.image_store import ImageStore, encode_png, open_images, read_metadata

META = {"parameters": "two cats\nSeed: 1", "gems": '{"prompt": "zwei Kätzchen ☃"}'}


@pytest.fixture
def reads() -> Counter[str]:
    """Number of reads of each file of ``counting://``, by file name."""
    return empty_counting_files()


def square(color: str) -> Image.Image:
    return Image.new("RGB", (8, 8), color)


def test_an_image_can_be_read_back(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    ref = store.put(Image.new("RGB", (20, 10), "red"), META)
    assert (ref.width, ref.height, ref.media_type) == (20, 10, "image/png")
    png = store.read(ref)
    with Image.open(io.BytesIO(png)) as image:
        assert image.convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    assert read_metadata(png) == META


def test_the_same_image_is_one_file_whoever_writes_it(tmp_path: Path) -> None:
    first = ImageStore(tmp_path).put(Image.new("RGB", (4, 4)), META)
    second = ImageStore(str(tmp_path)).put(Image.new("RGB", (4, 4)), META)
    other = ImageStore(tmp_path).put(Image.new("RGB", (4, 4)), {"parameters": "x"})
    assert first == second != other
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_a_reference_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_damage_and_loss_are_detected(tmp_path: Path) -> None:
    ref = ImageStore(tmp_path).put(Image.new("RGB", (4, 4)), {})
    file = next(tmp_path.rglob("*.png"))
    file.write_bytes(file.read_bytes()[:-1])
    store = ImageStore(tmp_path)
    with pytest.raises(BackendError, match="damaged"):
        store.read(ref)
    assert store.find(ref.sha256) is None
    file.unlink()
    with pytest.raises(BackendError, match="cannot be read") as caught:
        store.read(ref)
    assert not caught.value.retryable
    assert store.find(ref.sha256) is None


def test_an_unusable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"):
        ImageStore(tmp_path / "file" / "images")
    with pytest.raises(InputError):
        ImageStore("nosuchprotocol://x")


def test_png_encoding_is_deterministic() -> None:
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    assert encode_png(image, META) == encode_png(image.copy(), dict(META))


# --- reading once ---------------------------------------------------------------------------------------------------


def test_an_image_is_read_at_most_once(reads: Counter[str]) -> None:
    writer = ImageStore("counting://images")
    ref = writer.put(square("red"), META)
    assert writer.read(ref) == writer.read(ref)
    assert not reads, "an image that was just written is not read"
    reader = ImageStore("counting://images")
    elsewhere = ImageStore("counting://elsewhere")
    for store in (reader, elsewhere):
        assert store.read(ref) == store.read(ref) == writer.read(ref)
    assert reader.find(ref.sha256) == ref
    assert reads[f"{ref.sha256}.png"] == 2, "each store reads it once"


def test_a_file_that_was_there_before_is_verified_before_it_is_trusted(reads: Counter[str]) -> None:
    ref = ImageStore("counting://images").put(square("red"), META)
    path = next(path for path in CountingFileSystem.store if path.endswith(f"{ref.sha256}.png"))
    CountingFileSystem().pipe_file(path, b"damaged")
    store = ImageStore("counting://images")
    assert store.put(square("red"), META) == ref
    with pytest.raises(BackendError, match="damaged"):
        store.read(ref)


def test_a_removed_image_is_not_read_from_memory(reads: Counter[str]) -> None:
    store, other = ImageStore("counting://images"), ImageStore("counting://images")
    ref = store.put(square("red"), META)
    assert other.read(ref)
    assert store.remove(ref)
    assert not store.remove(ref)
    with pytest.raises(BackendError, match="cannot be read"):
        store.read(ref)
    assert other.find(ref.sha256) is None
    assert other.read(ref), "this store still has the image in memory"
    with pytest.raises(BackendError, match="cannot be read"):
        other.read(ref, check_exists=True)
    with pytest.raises(BackendError, match="cannot be read"):
        other.read(ref)


def test_asking_whether_a_file_exists_does_not_read_it_again(reads: Counter[str]) -> None:
    store = ImageStore("counting://images")
    ref = store.put(square("red"), META)
    assert store.read(ref, check_exists=True) == store.read(ref)
    assert not reads


def test_a_location_is_opened_once_for_all(
    reads: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = open_images("counting://images").put(square("red"), META)
    assert open_images("counting://images").read(ref)
    assert open_images("counting://elsewhere").read(ref)
    assert not reads
    monkeypatch.setenv("GEMS_IMAGES", str(tmp_path / "one"))
    first = open_images().put(square("red"), META)
    monkeypatch.setenv("GEMS_IMAGES", str(tmp_path / "two"))
    second = open_images().put(square("red"), META)
    assert (first.sha256, first.uri) != (second.sha256, second.uri)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        assert f"/{folder}/" in open_images("relative").put(square("blue"), META).uri


def test_the_files_used_last_stay_in_a_bounded_cache() -> None:
    cache = ImageCache(max_bytes=10)
    for name in "ab":
        cache.add("memory://x", name, b"12345")
    assert cache.get("memory://x", "a") == b"12345"
    cache.add("memory://x", "c", b"123456")
    assert [cache.get("memory://x", name) is not None for name in "abc"] == [False, False, True]
    cache.add("memory://x", "d", b"1234")
    cache.add("memory://x", "huge", b"1" * 11)
    assert [cache.get("memory://x", name) is not None for name in ("c", "d", "huge")] == [True, True, False]
    cache.add("memory://x", "c", b"12")
    cache.add("memory://x", "e", b"1234")
    assert all(cache.get("memory://x", name) for name in "cde")
    cache.drop("memory://x", "c")
    cache.drop("memory://x", "c")
    assert cache.get("memory://x", "c") is None
    assert cache.get("memory://y", "d") is None, "the same file at another address may not exist"


def test_threads_share_a_cache(reads: Counter[str]) -> None:
    store = ImageStore("counting://images", cache=ImageCache(max_bytes=1000))
    refs = [store.put(Image.effect_noise((16, 16), 50 + i).convert("RGB"), {}) for i in range(5)]
    expected = {ref.sha256: ImageStore("counting://images").read(ref) for ref in refs}
    wrong: list[ImageRef] = []

    def work(offset: int) -> None:
        for i in range(50):
            ref = refs[(i + offset) % len(refs)]
            if store.read(ref) != expected[ref.sha256]:
                wrong.append(ref)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
