"""Image files of servers and of strangers: what is transparent in them, and how much work they are."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from servers.scripted_images import answering, draw, encoded, file_of, in_json

import gems
from gems.errors import BackendError
from gems.memory.image_store import ImageStore, decode_png
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.image_work import MAX_SCANS
from gems.models.servers.image_files import decode_image
from gems.nodes.ask import image_block

CORNER, CENTRE = (0, 0), (32, 32)
WHITE, GREY, BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)


def sticker(colour: tuple[int, int, int] = BLACK) -> Image.Image:
    """A square of one colour in the centre of what is transparent, and black there like most files."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((*colour, 255), (16, 16, 48, 48))
    return image


def palette() -> Image.Image:
    """A sticker whose palette has one colour that stands for nothing."""
    image = Image.new("P", (64, 64), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(1, (16, 16, 48, 48))
    return image


STICKERS = {
    "RGBA": file_of(sticker()),
    "LA": file_of(sticker().convert("LA")),
    "palette with alpha": file_of(sticker().quantize(8)),
    "palette with one colour": file_of(palette(), transparency=0),
    "WebP": file_of(sticker(), "WEBP", lossless=True),
    "AVIF": file_of(sticker(), "AVIF"),
}


@pytest.mark.parametrize("kind", STICKERS)
def test_what_is_transparent_becomes_white(kind: str) -> None:
    with answering((200, STICKERS[kind], "image/png")) as server:
        result = draw(server.plain())
    assert isinstance(result, GeneratedImage), result
    assert result.image.mode == "RGB"
    assert min(result.image.getpixel(CORNER)) > 250  # type: ignore[type-var]
    assert max(result.image.getpixel(CENTRE)) < 5  # type: ignore[type-var]
    assert result.note is None


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_white_on_nothing_becomes_white_on_grey_with_a_note(mode: str) -> None:
    with answering(in_json({"data": [{"b64_json": encoded(sticker(WHITE).convert(mode))}]})) as server:
        result = draw(server.openai())
    assert isinstance(result, GeneratedImage), result
    assert (result.image.getpixel(CORNER), result.image.getpixel(CENTRE)) == (GREY, WHITE)
    assert result.note is not None
    assert "white on a transparent ground" in result.note


def test_an_image_that_is_transparent_everywhere_is_paid_once_and_told() -> None:
    with answering(in_json({"data": [{"b64_json": encoded(Image.new("RGBA", (64, 64)))}]})) as server:
        result = draw(server.openai())
    assert str(result) == "openai:m sent an image that is transparent everywhere"
    assert len(server.posts) == 1


class _Stickers(PaintGenerator):
    """A generator of one's own whose images are transparent in part, or everywhere."""

    def __init__(self, image: Image.Image) -> None:
        super().__init__()
        self._image = image

    def generate(self, requests: Sequence[ImageRequest], **_: Any) -> list[GeneratedImage | BackendError]:
        return [GeneratedImage(request, self._image) for request in requests]


def _run(image: Image.Image, folder: Path) -> Any:
    def answer(form: str, messages: list[Any], index: int) -> dict[str, Any]:
        if form == "Requirements":
            return {"requirements": [{"question": "Is there a car?", "kind": "object"}]}
        return {"verdicts": [{"id": "r1", "answer": "yes", "confidence": 0.9, "reason": "seen"}], "quality": 0.9}

    graph = gems.build_graph(
        mllm=ScriptedChatModel(script=answer),
        generator=_Stickers(image),
        images=ImageStore(folder),
        settings={"memory": False, "seed": 5, "plan": False, "max_rounds": 1},
    )
    state = graph.invoke({"prompt": "a car"})
    gems.close(graph)
    return state


def test_images_of_generators_of_ones_own_are_stored_without_transparency(tmp_path: Path) -> None:
    attempt = _run(sticker(), tmp_path / "black")["attempts"][0]
    stored = ImageStore(tmp_path / "black").read(attempt.image)
    with Image.open(io.BytesIO(stored)) as image:
        assert (image.mode, image.getpixel(CORNER), image.getpixel(CENTRE)) == ("RGB", WHITE, BLACK)
    state = _run(sticker(WHITE), tmp_path / "white")
    assert any("white on a transparent ground" in note for note in state["notes"])
    state = _run(Image.new("RGBA", (64, 64)), tmp_path / "nothing")
    assert not state["attempts"]
    assert any("transparent everywhere" in error for error in state["errors"])


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette with alpha", "palette with one colour"])
def test_a_strangers_png_is_read_without_transparency(kind: str) -> None:
    image = decode_png(STICKERS[kind])
    assert (image.mode, image.getpixel(CORNER), image.getpixel(CENTRE)) == ("RGB", WHITE, BLACK)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette with alpha", "palette with one colour"])
def test_a_chat_model_gets_a_strangers_png_without_transparency(kind: str) -> None:
    block = image_block(STICKERS[kind], longest=64)
    with Image.open(io.BytesIO(base64.b64decode(block["base64"]))) as image:
        assert (image.mode, image.getpixel(CORNER)) == ("RGB", WHITE)
    plain = file_of(sticker().convert("RGB"))
    assert base64.b64decode(image_block(plain, longest=64)["base64"]) == plain


# --- work -----------------------------------------------------------------------------------------------------------


def scans(count: int, side: int = 512) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    file = file_of(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    start = file.rindex(b"\xff\xda")
    return file[:-2] + file[start:-2] * (count - file.count(b"\xff\xda")) + b"\xff\xd9"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def box(kind: bytes, content: bytes, *, head: str = "") -> bytes:
    """A box of an AVIF, whose length may be in 64 bits ("wide"), or "open": to the end of the file."""
    if head == "wide":
        return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content
    return struct.pack(">I4s", 0 if head == "open" else 8 + len(content), kind) + content


def boxes(content: bytes) -> dict[bytes, bytes]:
    found, position = dict[bytes, bytes](), 0
    while position < len(content):
        size = int.from_bytes(content[position : position + 4])
        found[content[position + 4 : position + 8]] = content[position + 8 : position + size]
        position += size
    return found


PNG = file_of(Image.linear_gradient("L").convert("RGB"))
AVIF = file_of(Image.linear_gradient("L").convert("RGB"), "AVIF")
FTYP = AVIF[: int.from_bytes(AVIF[:4])]
FULL = bytes(4)
"""Version and flags."""


def items(tables: bytes) -> bytes:
    """The content of an AVIF's `meta` with these tables."""
    return FULL + box(b"hdlr", boxes(boxes(AVIF)[b"meta"][4:])[b"hdlr"]) + tables


def numbers(count: int, entry: str) -> bytes:
    values = [0] * (len(entry) - 2)
    return b"".join(struct.pack(entry, i, *values) for i in range(1, count + 1))


INFE = b"".join(box(b"infe", struct.pack(">IIH4sx", 3 << 24, i, 0, b"av01")) for i in range(80_000))
IINF = box(b"iinf", struct.pack(">II", 1 << 24, 80_000) + INFE)
IPMA = box(b"ipma", struct.pack(">II", 1 << 24, 100_000) + numbers(100_000, ">IB"))
ILOC = box(b"iloc", struct.pack(">IHI", 2 << 24, 0, 100_000) + numbers(100_000, ">IHHH"))
IREF = box(b"iref", FULL + 20 * box(b"dimg", struct.pack(">HH", 1, 50_000) + numbers(50_000, ">H")))
IPRP = box(b"ipco", b"") + 20 * box(b"ipma", struct.pack(">II", 0, 30_000) + numbers(30_000, ">HB"))
CHUNKS = box(b"stsc", struct.pack(">II", 0, 160_000) + numbers(160_000, ">III")) + box(
    b"stco", struct.pack(">II", 0, 160_000) + bytes(640_000)
)
TRACK = box(b"mdia", box(b"minf", box(b"stbl", CHUNKS)))
BOMBS = {
    "items": FTYP + box(b"meta", items(IINF)),
    "items behind others": FTYP + box(b"free", b"") + box(b"mdat", bytes(99), head="wide") + box(b"meta", items(IINF)),
    "items, wide": FTYP + box(b"meta", items(IINF), head="wide"),
    "items, open": FTYP + box(b"meta", items(IINF), head="open"),
    "items in many boxes": FTYP + 100 * box(b"meta", items(IINF[:8_000])),
    "places": FTYP + box(b"meta", items(ILOC)),
    "references": FTYP + box(b"meta", items(IREF)),
    "properties": FTYP + box(b"meta", items(box(b"iprp", box(b"ipco", b"") + IPMA))),
    "properties in many boxes": FTYP + box(b"meta", items(box(b"iprp", IPRP))),
    "chunks of a track": FTYP + box(b"moov", box(b"trak", TRACK)),
    "items of a track": FTYP + box(b"moov", box(b"trak", box(b"meta", items(IINF)))),
    "boxes": FTYP + 2**20 * box(b"free", b""),
    "scans": scans(5_000),
    "segments": b"\xff\xd8" + b"\xff\xe1\0\2" * 2**20,
    "fill bytes": b"\xff\xd8" + b"\xff" * 2**25,
    "junk": b"\xff\xd8\xff\xe1\0\2" + b"a" * 2**25 + b"\xff\xda",
    "chunks": PNG[:33] + chunk(b"tEXt", b"a\0b") * 2**18 + PNG[33:],
    "profiles": PNG[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20))) * 10_000 + PNG[33:],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_is_too_much_work_is_refused_at_once(name: str) -> None:
    with answering((200, BOMBS[name], "image/png")) as server:
        start = time.process_time()
        result = draw(server.plain())
        assert time.process_time() - start < 5
    assert "too much work" in str(result)
    assert len(server.posts) == 1


def test_a_png_that_is_too_much_work_is_refused_wherever_it_is_read() -> None:
    for read in (decode_png, partial(image_block, longest=4)):
        with pytest.raises(BackendError, match="chunks"):
            read(BOMBS["chunks"])


FRAMES = [Image.new("RGB", (16, 16), (i % 256, 0, 0)) for i in range(40)]


def in_item_data() -> bytes:
    """An AVIF whose image lies in `idat`, among the tables, and is followed there by a megabyte."""
    data, tables = boxes(AVIF), boxes(boxes(AVIF)[b"meta"][4:])
    place = struct.pack(">IHHHHHHII", 1 << 24, 0x4400, 1, 1, 1, 0, 1, 0, len(data[b"mdat"]))
    tables |= {b"iloc": place, b"idat": data[b"mdat"] + bytes(2**20)}
    return FTYP + box(b"meta", FULL + b"".join(box(kind, content) for kind, content in tables.items()))


@pytest.mark.parametrize(
    "file",
    [
        scans(MAX_SCANS),
        file_of(Image.effect_noise((600, 600), 90), "JPEG", progressive=True, quality=99),
        file_of(Image.effect_noise((600, 600), 90), "JPEG", quality=99, restart_marker_blocks=1),
        file_of(Image.new("RGB", (64, 64)), "JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 9_000),
        file_of(Image.new("RGB", (64, 64)), "JPEG", icc_profile=b"\xff\xda" * 90_000),
        file_of(Image.effect_noise((900, 900), 90)),
        file_of(Image.effect_noise((900, 900), 90), "AVIF", quality=100, speed=10),
        file_of(Image.new("RGB", (64, 64)), "AVIF", icc_profile=bytes(2**20), xmp=bytes(2**20)),
        file_of(FRAMES[0], "AVIF", save_all=True, append_images=FRAMES, speed=10, duration=list(range(20, 61))),
        in_item_data(),
    ],
)
def test_large_and_odd_files_of_real_programs_are_decoded(file: bytes) -> None:
    assert decode_image(file, "x").mode == "RGB"


# --- what should be known -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("is_blank", [True, False])
def test_a_blank_first_image_of_an_animation_is_noted(kind: str, is_blank: bool) -> None:
    frames = [Image.new("RGB", (64, 64)), sticker(WHITE).convert("RGB")]
    first, second = frames if is_blank else frames[::-1]
    body = file_of(first, kind, save_all=True, append_images=[second], lossless=True)
    with answering((200, body, "image/png")) as server:
        result = draw(server.plain())
    assert isinstance(result, GeneratedImage), result
    assert bool(result.note and "animation" in result.note) is is_blank


def test_a_file_says_nothing_in_our_name() -> None:
    words = PngInfo()
    words.add_text("gems_note", "buy more credits at example.com")
    with answering((200, file_of(Image.linear_gradient("L"), pnginfo=words), "image/png")) as server:
        result = draw(server.plain())
    assert isinstance(result, GeneratedImage), result
    assert result.note is None


def test_an_image_of_a_single_pixel_is_noted() -> None:
    with answering(in_json({"data": [{"b64_json": encoded(Image.new("RGB", (1, 1)))}]})) as server:
        result = draw(server.openai())
    assert isinstance(result, GeneratedImage), result
    assert result.note == "openai:m drew only 1x1 pixels"
