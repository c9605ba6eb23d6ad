"""A chat model that has seen no image, and says so, has given no verdict, whatever it writes into the form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import ScriptedChatModel
from langchain_core.messages import AIMessage
from PIL import Image

from gems.errors import BackendError
from gems.faces import run_here
from gems.graph.context import GemsContext
from gems.graph.state import Requirement, Usage
from gems.memory.image_store import encode_png
from gems.nodes.examiner import inspect_image
from gems.nodes.meter import Meter
from gems.nodes.unseen_images import says_unseen

QUESTION = Requirement(id="r1", question="Are there exactly two cars in the image?", kind="count")

NO_IMAGE = "the chat model says that it has seen no image"
WORDS = (
    "I'm sorry, but I can't view or analyze images directly. However, if you describe it to me, I can help.",
    "Es tut mir leid, aber ich kann keine Bilder sehen. Beschreiben Sie mir das Bild bitte.",
    "Ich kann leider keine Bilder direkt analysieren.",
    "抱歉，我无法查看图片。请描述一下图片内容。",
    "Lo siento, no puedo ver imágenes. Descríbala, por favor.",
    "Désolé, je ne suis pas en mesure de voir des images.",
    "Desculpe, não consigo ver imagens.",
    "Mi dispiace, non posso vedere le immagini.",
    "Sorry, ik kan geen afbeeldingen bekijken.",
    "К сожалению, я не могу просматривать изображения.",
    "申し訳ありませんが、画像を見ることはできません。",
    "죄송하지만 이미지를 볼 수 없습니다.",
)
UNSEEN = (
    "I'm unable to view images. However, here is an example of the format:",
    "As a text-based AI, I cannot see the image you provided. If it shows two cars:",
    "I can’t directly see or analyze images, but",
    "No image was attached. For a matching one:",
    "No image provided.",
    "No image is available to me",
    "There is no image to inspect.",
    "I do not see any image attached.",
    "I don't have access to the image.",
    "I don't have the ability to view images",
    "I have no access to the image",
    "It seems the image was not uploaded",
    "The image wasn't provided",
    "the image did not come through",
    "Assuming the image matches the description:",
    "Hypothetical answers:",
    "我无法查看图片，",
    "您没有提供图片",
    "未提供图像",
    "Ich kann das Bild nicht sehen",
    "Je ne peux pas voir l'image",
    "No puedo ver la imagen",
    *WORDS,
)
SEEN = (
    "",
    "Here are my answers about the image:",
    "I can see the image.",
    "The image does not show any cars",
    "two red cars are visible in the image",
    "no cars in the image",
    "the image has no cars",
    "I cannot see any cars in the image",
    "cannot see the second car",
    "no second car is visible in the image",
    "a picture hangs on the wall, no image in the frame",
    "no photo of a car hangs there",
    "unsure only if the image does not let you tell",
    "图片中没有汽车",
    "没有看到汽车",
    "I see a car; the image is not sharp",
    "the plate is missing",
)


def _answer_for(content: str) -> tuple[str, str]:
    model = ScriptedChatModel(script=lambda schema, messages, index: AIMessage(content))
    png = encode_png(Image.new("RGB", (8, 8)), {})
    [verdict] = run_here(inspect_image(Meter(Usage(), GemsContext()), model, [QUESTION], png)).verdicts
    return verdict.answer, verdict.reason


def _form(**fields: Any) -> str:
    answer = {"id": "r1", "answer": "yes", "confidence": 0.9, "reason": fields.pop("reason", "two cars")}
    return json.dumps({"verdicts": [answer], "quality": 0.9, "flaws": "", **fields})


@pytest.mark.parametrize("words", UNSEEN)
def test_a_yes_about_an_unseen_image_is_unsure(words: str) -> None:
    fenced = f"{words}\n```json\n{_form()}\n```"
    for content in (fenced, f"{_form()}\n\nNote: {words}", _form(reason=words), _form(flaws=words, quality=0.1)):
        assert _answer_for(content) == ("unsure", NO_IMAGE)


@pytest.mark.parametrize("words", UNSEEN)
def test_an_unseen_image_may_be_told_of_anywhere_beside_the_answers(words: str) -> None:
    for beside in ({"note": words}, {"remarks": ["ok", words]}, {"comment": {"text": words}}, {"a": [{"b": [words]}]}):
        assert _answer_for(_form(**beside)) == ("unsure", NO_IMAGE)
    for other in (json.dumps({"error": words}), json.dumps([words])):
        assert _answer_for(f"{_form()}\n{other}") == ("unsure", NO_IMAGE)
        assert _answer_for(f"{other}\n{_form()}") == ("unsure", NO_IMAGE)
    if "\n" not in words:
        assert _answer_for(f'{{"verdicts": [ // {words}\n{{"id": "r1", "answer": "yes"}}]}}') == ("unsure", NO_IMAGE)


@pytest.mark.parametrize(
    "beside",
    [
        {"image_provided": False},
        {"has_image": "no"},
        {"image_visible": False},
        {"meta": {"imageReceived": False}},
        {"can_see_image": "No"},
        {"no_image": True},
        {"image_missing": "yes"},
        {"images_received": 0},
        {"image": "not provided"},
        {"image_status": "missing"},
        {"warning": "image not visible"},
        {"error": "image could not be loaded"},
        {"error": "Failed to load the image."},
        {"errors": [{"message": "The image cannot be opened", "code": 7}]},
    ],
)
def test_a_field_may_say_that_no_image_arrived(beside: dict[str, Any]) -> None:
    assert _answer_for(_form(**beside)) == ("unsure", NO_IMAGE)
    assert _answer_for(f"{_form()}\n{json.dumps(beside)}") == ("unsure", NO_IMAGE)


@pytest.mark.parametrize(
    "beside",
    [
        {"image_provided": True, "has_image": "yes", "images_received": 1, "image_status": "ok"},
        {"no_image": False, "image_missing": "no", "image_error": None, "errors": []},
        {"image": None, "image_quality": "no artefacts", "image_issues": "none", "image_noise": False},
        {"present_in_image": ["cars"], "found_in_image": {"dogs": 0}, "visible_text": "No image available"},
        {"warning": "the second car in the image is not visible as a whole", "notes": ["I can see the image."]},
    ],
)
def test_fields_about_an_image_that_was_seen_change_no_answer(beside: dict[str, Any]) -> None:
    assert _answer_for(_form(**beside))[0] == "yes"


def test_of_several_questions_those_are_unsure_of_which_a_model_says_so() -> None:
    other = Requirement(id="r2", question="Is the sky blue?", kind="attribute")
    answers = [{"id": i, "answer": "yes", "confidence": 0.9} for i in ("r1", "r2")]
    for beside in (
        {"reasons": {"r2": "no image was provided"}},
        {"reasons": ["two", "no image"]},
        {"r2_note": "no image"},
    ):
        content = json.dumps({"verdicts": answers, **beside})
        model = ScriptedChatModel(script=lambda schema, messages, index, content=content: AIMessage(content))
        png = encode_png(Image.new("RGB", (8, 8)), {})
        verdicts = run_here(inspect_image(Meter(Usage(), GemsContext()), model, [QUESTION, other], png)).verdicts
        assert [v.answer for v in verdicts] == ["yes", "unsure"]
        assert verdicts[1].reason == NO_IMAGE


@pytest.mark.parametrize("words", SEEN)
def test_words_about_what_is_seen_change_no_answer(words: str) -> None:
    assert not says_unseen(words)
    for content in (f"{words}\n{_form()}", _form(reason=words)):
        answer, reason = _answer_for(content)  # "no cars" is no reason for "yes, exactly two"
        assert answer == "yes" or reason.startswith("yes, but the reason is")


def test_what_a_model_thought_changes_no_answer() -> None:
    assert _answer_for(f"<think>I cannot see the image. Yes, I can.</think>{_form()}")[0] == "yes"


@pytest.mark.parametrize("reason", ["No, there are three cars", "no - three", "No. Three.", "The answer should be no"])
def test_a_yes_whose_reason_is_a_no_is_unsure(reason: str) -> None:
    assert _answer_for(_form(reason=reason))[0] == "unsure"


@pytest.mark.parametrize("reason", ["No people are there", "none", "nothing else", "absent", "not a third car"])
def test_a_reason_may_name_what_is_not_there(reason: str) -> None:
    assert _answer_for(_form(reason=reason))[0] == "yes"


@pytest.mark.parametrize(
    "words",
    ["Correction: r1 should be no.", "Wait, there are three cars.", "**Actually**, one is a bus.", "I miscounted."],
)
def test_answers_that_are_corrected_afterwards_are_unsure(words: str) -> None:
    assert _answer_for(f"{_form()}\n\n{words}")[0] == "unsure"
    assert _answer_for(f"```json\n{_form()}\n```\nDone. {words}")[0] == "unsure"


@pytest.mark.parametrize("words", ["Let me know if you need more.", "These are what the image actually shows."])
def test_words_after_the_answers_change_nothing(words: str) -> None:
    assert _answer_for(f"Wait, let me look again.\n{_form()}\n\n{words}")[0] == "yes"


@pytest.mark.parametrize("words", WORDS)
def test_one_that_says_nothing_else_is_told_as_that(words: str) -> None:
    with pytest.raises(BackendError, match="has seen no image; give a verifier that sees images"):
        _answer_for(words)


def test_one_that_gives_no_answer_for_another_reason_is_told_as_that() -> None:
    with pytest.raises(BackendError, match="no structured answer"):
        _answer_for("There are two cars.")
