from __future__ import annotations

import hashlib
import io
import os
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest
from counting_files import CountingFileSystem, empty_counting_files
from PIL import Image
from recording_server import recorded_requests

from gems.errors import BackendError, InputError
from gems.graph.state import ImageRef
from gems.memory.image_cache import ImageCache
from gems.memory.image_store import (
    ImageStore,
    decode_png,
    encode_png,
    open_images,
    read_from,
    read_metadata,
    without_foreign_chunks,
)
from gems.nodes.ask import image_block

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


def test_a_relative_store_can_be_read_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ImageStore("relative")
    ref = store.put(Image.new("RGB", (4, 4)), {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.read(ref) == ImageStore(tmp_path / "relative").read(ref)


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


# --- other places ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """The address of a local server that sends an image to everybody, and the paths it was asked for."""
    with recorded_requests(encode_png(square("red"), META)) as server:
        yield server


FOREIGN_ADDRESSES = [
    "http://{host}/a.png",
    "HTTP://{host}/a.png",
    "http://user:password@{host}/a.png",
    "filecache::http://{host}/a.png",
    "simplecache::http://{host}/a.png",
    "zip://a.png::http://{host}/a.zip",
    "blockcache::simplecache::http://{host}/a.png",
    "ftp://{host}/a.png",
    "s3://bucket/a.png",
    "memory://elsewhere/a.png",
    "counting://elsewhere/a.png",
    "data:image/png;base64,AAAA",
    "file:///etc/passwd",
    "file://{host}/etc/passwd",
    "//{host}/share/a.png",
    "\\\\{host}\\share\\a.png",
    "{folder}/secret.png",
    "file://{folder}/secret.png",
    "file://{folder}/images/../secret.png",
    "file://{folder}/images/%2e%2e/secret.png",
    "../secret.png",
    "file:///dev/zero",
    "::",
    "no such scheme://",
    "file://\x00",
    "\x1b[31mred",
]


@pytest.mark.parametrize("address", FOREIGN_ADDRESSES)
def test_no_address_but_the_configured_store_is_opened(
    server: tuple[str, list[str]], reads: Counter[str], tmp_path: Path, address: str
) -> None:
    host, requested = server
    data = encode_png(square("red"), META)
    sha256 = hashlib.sha256(data).hexdigest()
    (tmp_path / "secret.png").write_bytes(data)
    for fs in (fsspec.filesystem("memory"), CountingFileSystem()):
        fs.pipe_file("/elsewhere/a.png", data)
    store = ImageStore(tmp_path / "images")
    ref = ImageRef(uri=address.format(host=host, folder=tmp_path), sha256=sha256, width=8, height=8)
    for check_exists in (False, True):
        with pytest.raises(BackendError, match="--images") as caught:
            store.read(ref, check_exists=check_exists)
        assert not caught.value.retryable
        assert "\x1b" not in str(caught.value)
    assert store.find(sha256) is None
    assert not store.remove(ref)
    assert (requested, dict(reads)) == ([], {})
    assert store.put(square("red"), META).uri != ref.uri
    assert store.read(ref) == data, "the store holds this image, whatever address its record names"


@pytest.mark.parametrize("hash_", ["../../secret", "0" * 63, "A" * 64, "0" * 64 + "\n", "", "%2e%2e/secret"])
def test_a_hash_names_no_other_file(tmp_path: Path, hash_: str) -> None:
    (tmp_path / "secret.png").write_bytes(encode_png(square("red"), META))
    store = ImageStore(tmp_path / "images")
    ref = ImageRef.model_construct(uri=store.url, sha256=hash_, width=8, height=8)
    with pytest.raises(BackendError, match="not the hash of an image"):
        store.read(ref)
    assert store.find(hash_) is None
    assert not store.remove(ref)


def test_links_pipes_and_folders_are_not_read(tmp_path: Path) -> None:
    data = encode_png(square("red"), META)
    outside = tmp_path / "outside.png"
    outside.write_bytes(data)
    store = ImageStore(tmp_path / "images")
    ref = store.put(square("red"), META)
    [file] = (tmp_path / "images").rglob("*.png")

    def fault() -> str:
        reader = ImageStore(tmp_path / "images")
        assert reader.find(ref.sha256) is None
        with pytest.raises(BackendError) as caught:
            reader.read(ref)
        return str(caught.value)

    file.unlink()
    file.symlink_to(outside)
    assert "leads out of its folder" in fault()
    file.unlink()
    os.mkfifo(file)
    assert "not a file" in fault()
    file.unlink()
    file.mkdir()
    assert "not a file" in fault()
    file.rmdir()
    (inside := tmp_path / "images" / "moved.png").write_bytes(data)
    file.symlink_to(inside)
    assert store.read(ref) == data
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert ImageStore(tmp_path / "link").read(ref) == data


def test_a_file_is_checked_before_it_is_decoded(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    bomb = bytearray(encode_png(square("red"), META))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    for content, fault in [(b"no image", "not a PNG"), (bytes(bomb), "more than 67,108,864 pixels")]:
        sha256 = hashlib.sha256(content).hexdigest()
        (tmp_path / sha256[:2]).mkdir()
        (tmp_path / sha256[:2] / f"{sha256}.png").write_bytes(content)
        with pytest.raises(BackendError, match=fault):
            store.read_hash(sha256)
        assert store.find(sha256) is None
    huge = "ff" * 32
    (tmp_path / "ff").mkdir(exist_ok=True)
    with (tmp_path / "ff" / f"{huge}.png").open("wb") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises(BackendError, match="more than 256 MB"):
        store.read_hash(huge)


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def test_a_second_header_does_not_make_an_image_larger_than_was_checked() -> None:
    png = encode_png(square("red"), META)
    wide = (9_000).to_bytes(4, "big") * 2 + png[24:29]
    with pytest.raises(BackendError, match="two headers"):
        decode_png(png[:33] + chunk(b"IHDR", wide) + png[33:])


FOREIGN = [
    chunk(b"eXIf", b"MM\0*where the photograph was taken"),
    chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"anything")),
    chunk(b"zTXt", b"gems\0\0" + zlib.compress(b"a" * 10**6)),
    chunk(b"tEXt", b"Author\0somebody"),
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"),
    chunk(b"acTL", bytes(8)),
    chunk(b"prVt", b"anything"),
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_somebody_has_put_into_an_image_is_not_passed_on(foreign: bytes) -> None:
    own = encode_png(square("red"), META)
    assert without_foreign_chunks(own) == own
    for place in (33, len(own) - 12, len(own)):  # behind the size, before the end, behind it
        assert without_foreign_chunks(own[:place] + foreign + own[place:]) == own


@pytest.mark.parametrize("cut", [8, 20, 40, -12, -1])
def test_a_torn_image_is_not_passed_on(cut: int) -> None:
    own = encode_png(square("red"), META)
    with pytest.raises(BackendError, match="damaged"):
        without_foreign_chunks(own[:cut])
    with pytest.raises(BackendError, match="damaged"):
        without_foreign_chunks(own[:33] + b"\xff\xff\xff\xff" + own[37:])


@pytest.mark.parametrize("fault", ["pixels", "texts", "kind"])
def test_an_image_that_cannot_be_decoded_is_told_in_one_line(fault: str) -> None:
    own = encode_png(square("red"), META)
    bomb = b"".join(chunk(b"zTXt", b"t%d\0\0" % n + zlib.compress(bytes(2**20))) for n in range(70))
    head = own[:33]
    images = {"pixels": head + chunk(b"IDAT", b"no zlib") + chunk(b"IEND", b""), "texts": head + bomb + own[33:]}
    readers: tuple[Callable[[bytes], object], ...] = (decode_png, read_metadata, partial(image_block, longest=4))
    png = images.get(fault, b"\xff\xd8\xff" + own)
    for read in readers:
        with pytest.raises(BackendError, match="damaged") as caught:
            read(png)
        assert "\n" not in str(caught.value)


def test_several_stores_are_read_in_turn(tmp_path: Path) -> None:
    first, second = ImageStore(tmp_path / "first"), ImageStore(tmp_path / "second")
    ref = second.put(square("red"), META)
    assert read_from([first, second], ref.sha256, ref.uri) == read_from([second, first], ref.sha256, ref.uri)
    first.put(square("red"), META)
    next((tmp_path / "first").rglob("*.png")).write_bytes(b"damaged")
    with pytest.raises(BackendError, match="damaged"):
        read_from([ImageStore(tmp_path / "first"), second], ref.sha256, ref.uri)


def test_a_store_that_is_only_read_makes_no_folder(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", create=False)
    assert store.find("0" * 64) is None
    assert not (tmp_path / "images").exists()


# --- names of folders -----------------------------------------------------------------------------------------------

ODD_FOLDERS = [
    "my images",
    "50% off",
    "a%20b",
    "no#1",
    "why?",
    "a::b",
    "C:",
    "zip::x",
    "[x]*",
    "a&b=c;d",
    "größe",
    "画像 🐘",
    "'\"",
    "back\\slash",
    "a@b",
    "-",
    "new\nline",
]


@pytest.mark.parametrize("folder", ODD_FOLDERS)
def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / folder / "images"
    ref = ImageStore(place).put(square("red"), META)
    assert ref.uri == f"file://{place}/{ref.sha256[:2]}/{ref.sha256}.png"
    for same in (place, str(place), f"file://{place}", place.as_uri(), f"./{folder}/images", f"{folder}/images"):
        store = ImageStore(same)
        assert store.url == f"file://{place}"
        assert store.find(ref.sha256) == ref
        assert store.put(square("red"), META) == ref
        assert store.read(ref)
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    assert ImageStore(place).remove(ref)


def test_a_percent_encoded_address_names_the_folder_that_it_stands_for(tmp_path: Path) -> None:
    place = tmp_path / "my images" / "größe #1"
    ImageStore(place.as_uri()).put(square("red"), META)
    assert len(list(place.rglob("*.png"))) == 1


def test_the_home_folder_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ImageStore("~/images").url == f"file://{tmp_path}/images"


# --- reading once ---------------------------------------------------------------------------------------------------


def test_an_image_is_read_at_most_once(reads: Counter[str]) -> None:
    writer = ImageStore("counting://images")
    ref = writer.put(square("red"), META)
    assert writer.read(ref) == writer.read(ref)
    assert not reads, "an image that was just written is not read"
    reader = ImageStore("counting://images")
    assert reader.read(ref) == reader.read(ref) == writer.read(ref)
    assert reader.find(ref.sha256) == ref
    assert reads[f"{ref.sha256}.png"] == 1
    with pytest.raises(BackendError, match="not in the image store counting://elsewhere"):
        ImageStore("counting://elsewhere").read(ref)


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
