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
    "It looks like no image came through on my end. Could you please share the image?",
    "I can only process text, so I'm not able to answer questions about pictures.",
    "Je ne vois pas d'image jointe. Veuillez joindre l'image.",
    "Ich sehe kein Bild. Bitte laden Sie das Bild hoch.",
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
    "I do not have vision capabilities, so I assume yes",
    "I'm a text model, so I can't verify this visually",
    "no visual input was supplied",
    "Image content not accessible",
    "The image was omitted from the conversation",
    "(image unsupported by current model)",
    "Please upload the image",
    "You did not attach an image.",
    "There doesn't seem to be an image attached.",
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
    "the image has no text",
    "no visual difference",
    "I can only read text on the left sign",
    "please provide a clearer image if you need more",
)
ELSEWHERE = {
    "en": (
        "I see no image. / There is no image in this conversation. / I have no image here / I have received no image",
        "I see no image on the sign / There is no cat in this image / There is no photo in the frame",
    ),
    "es": (
        (
            "No veo ninguna imagen adjunta / No se ha proporcionado ninguna imagen. / No tengo acceso a la imagen"
            " / Solo puedo procesar texto."
        ),
        "No veo ninguna imagen de un perro / No hay perros en la imagen / La imagen no muestra un perro",
    ),
    "fr": (
        (
            "Je ne vois pas d'image jointe / Aucune image n'a été fournie / Je n'ai pas accès à l'image"
            " / Je ne peux traiter que du texte."
        ),
        "Je ne vois pas d'image de chien au mur / Il n'y a pas de chien dans l'image / aucune image de chien",
    ),
    "de": (
        (
            "Ich sehe kein Bild / Es wurde kein Bild bereitgestellt / Ich habe keinen Zugriff auf das Bild"
            " / Ich kann nur Text lesen"
        ),
        "Ich sehe kein Bild an der Wand / Im Bild ist kein Hund zu sehen / Das Bild ist nicht schwarzweiß",
    ),
    "it": (
        (
            "Non vedo alcuna immagine. / Non è stata fornita alcuna immagine / Non ho accesso all'immagine"
            " / Posso leggere solo testo"
        ),
        "Non vedo alcuna immagine di un cane / Non vedo alcun cane nell'immagine / L'immagine non mostra un cane",
    ),
    "pt": (
        "Não vejo nenhuma imagem. / Nenhuma imagem foi fornecida / Não tenho acesso à imagem / Só consigo ler texto",
        "Não vejo nenhuma imagem de um cão / Não vejo nenhum cão na imagem / A imagem não mostra um cão",
    ),
    "nl": (
        (
            "Ik zie geen afbeelding. / Er is geen afbeelding bijgevoegd / Ik heb geen toegang tot de afbeelding"
            " / Ik kan alleen tekst lezen"
        ),
        "Ik zie geen afbeelding van een hond / Ik zie geen hond op de afbeelding / Ik kan de afbeelding zien",
    ),
    "pl": (
        "Nie widzę obrazu. / Nie załączono żadnego obrazu / Nie mam dostępu do obrazu / Mogę czytać tylko tekst",
        "Nie widzę obrazu na ścianie / Nie widzę psa na obrazie / Obraz nie pokazuje psa",
    ),
    "ru": (
        (
            "Я не вижу изображения. / Изображение не предоставлено / У меня нет доступа к изображению"
            " / Я могу читать только текст"
        ),
        "Я не вижу изображения собаки / На изображении нет собаки / Не могу различить на изображении собаку",
    ),
    "tr": (
        "Görseli göremiyorum. / Herhangi bir görsel yüklenmedi / Görsele erişimim yok / Sadece metin okuyabilirim",
        "Duvarda bir resim göremiyorum / Resimde kedi göremiyorum / Görselde köpek yok",
    ),
    "ko": (
        (
            "이미지가 보이지 않습니다. / 이미지가 첨부되지 않았습니다 / 이미지에 접근할 수 없습니다"
            " / 텍스트만 처리할 수 있습니다"
        ),
        "벽에 사진이 없습니다 / 이미지에 개가 없습니다 / 이미지에서 개를 볼 수 없습니다",
    ),
    "zh": (
        "我看不到图片。 / 您没有上传图片 / 我无法访问图片 / 我只能处理文本 / 我看不到圖片",
        "墙上没有照片 / 看不到图片中的猫 / 图像未显示狗 / 我只能读取文字上的字",
    ),
    "ja": (
        "画像は見えません。 / 画像が提供されていません / 画像にアクセスできません / テキストのみ処理できます",
        "壁に写真はありません / 画像に犬はいません / 画像には犬が見えません",
    ),
}
"""By language: sentences of models that see no image, and such that tell what an image shows."""


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


@pytest.mark.parametrize("language", ELSEWHERE)
def test_in_every_language_a_missing_image_is_told_from_one_without_something(language: str) -> None:
    unseen, seen = (sentences.split(" / ") for sentences in ELSEWHERE[language])
    for words in unseen:
        for content in (_form(reason=words), _form(note=words), f"{_form()}\n\n{words}"):
            assert _answer_for(content) == ("unsure", NO_IMAGE), words
    assert [_answer_for(_form(note=words))[1] for words in seen] == ["two cars"] * len(seen)


@pytest.mark.parametrize("noun", ["image", "picture", "photo", "images", "attachment"])
@pytest.mark.parametrize("said", ["I see no {}", "There is no {}", "I don't see any {}", "no {} was provided"])
def test_what_follows_tells_an_image_from_one_within_it(said: str, noun: str) -> None:
    sentence = said.format(noun)
    for place in (" in your message", " in this conversation", " with your request", " in the prompt."):
        assert says_unseen(sentence + place)
    if "provided" not in sentence:
        for place in (" on the sign", " of a dog", " in the frame", " above the sofa", " hanging on the wall"):
            assert not says_unseen(sentence + place)


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
