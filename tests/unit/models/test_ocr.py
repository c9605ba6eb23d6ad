"""The real text reader on drawn signs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, ImageDraw, ImageFont

from gems.errors import InputError
from gems.graph.state import Requirement
from gems.models.inspectors import Inspector
from gems.models.ocr import OcrInspector, similarity
from gems.models.registry import init_inspector
from gems.wording import quoted_texts

pytestmark = pytest.mark.slow


def sign(text: str) -> Image.Image:
    image = Image.new("RGB", (320, 240), "white")  # the reader enlarges it: a wide one takes longer
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 30, 300, 210), outline="black", width=6)
    draw.multiline_text((160, 120), text, "black", ImageFont.load_default(40), anchor="mm", align="center")
    return image


def requirement(question: str, name: str = "r1") -> Requirement:
    return Requirement(id=name, question=question, kind="text")


@pytest.fixture(scope="module")
def ocr() -> OcrInspector:
    return OcrInspector()


def test_it_is_found_by_name_and_follows_the_protocol() -> None:
    assert isinstance(init_inspector("ocr"), Inspector)
    with pytest.raises(InputError, match="unknown inspector 'nose'; choose from: ocr"):
        init_inspector("nose")


@pytest.mark.parametrize(
    ("sign_text", "verdicts"),
    [
        (
            "OPEN",
            {
                'Does the sign read "OPEN"?': True,
                "Does the sign read “open”?": True,
                'Does it read "OPEN" and, below, "SUNDAY"?': False,
            },
        ),
        ("FRESH\nBREAD", {"Does the sign say 'Fresh bread'?": True, 'Does the sign read "OPEN"?': False}),
        ("REOPENED", {'Does the sign read "OPEN"?': False}),
    ],
)
def test_it_reports_whether_the_words_are_there(ocr: OcrInspector, sign_text: str, verdicts: dict[str, bool]) -> None:
    asked = [requirement(question, f"r{n}") for n, question in enumerate(verdicts)]
    *findings, undecided = ocr.inspect(sign(sign_text), [*asked, requirement("Is there writing on the sign?", "r9")])
    assert [finding.requirement_id for finding in findings] == [r.id for r in asked]
    for finding, verdict in zip(findings, verdicts.values(), strict=True):
        assert sign_text.split()[0] in finding.evidence
        assert finding.probability is not None
        assert (finding.probability > 0.9) if verdict else (finding.probability < 0.1)
    # Without a quotation, it only reports what it reads.
    assert undecided == type(undecided)("r9", f'reads "{" ".join(sign_text.split())}"', None)


def test_one_or_two_wrong_letters_may_be_reading_errors(ocr: OcrInspector) -> None:
    [finding] = ocr.inspect(sign("GROCERIEZ"), [requirement('Does the sign read "GROCERIES"?')])
    assert finding.probability is None
    assert "89% like what is asked for" in finding.evidence


def test_nothing_read_does_not_mean_nothing_written(ocr: OcrInspector) -> None:
    [finding] = ocr.inspect(Image.new("RGB", (200, 200), "white"), [requirement('Does the sign read "OPEN"?')])
    assert finding.evidence == "reads no text"
    assert finding.probability == pytest.approx(0.25)


def test_threads_may_share_it(ocr: OcrInspector) -> None:
    with ThreadPoolExecutor(3) as pool:
        read = list(pool.map(lambda word: ocr.read(sign(word))[0], ["ONE", "TWO", "SIX"]))
    assert read == [["ONE"], ["TWO"], ["SIX"]]


@pytest.mark.parametrize(
    ("question", "quoted"),
    [
        ('Does it say "a" or “b”?', ["a", "b"]),
        ("Is 'Joe's Diner' written on the door?", ["Joe's Diner"]),
        ("Is the dog's bowl empty?", []),
        ("Steht dort „Bäckerei“ oder «pain»?", ["Bäckerei", "pain"]),
    ],
)
def test_quotations_are_found(question: str, quoted: list[str]) -> None:
    assert quoted_texts(question) == quoted


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("OPEN", ["we", "are", "open!"], 1.0),
        ("fresh bread", ["FRESHBREAD"], 1.0),
        ("fresh bread", ["FR", "ESH", "BR", "EAD"], 1.0),
        ("open", ["opem"], 0.75),
        ("pen", ["open"], 0.75),
        ("open", [], 0.0),
        ("!!!", ["!!!"], 0.0),
    ],
)
def test_similarity_is_the_edit_distance_to_the_nearest_words(text: str, words: list[str], expected: float) -> None:
    assert similarity(text, words) == pytest.approx(expected)
