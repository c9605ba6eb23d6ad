"""A list of requirements that was cut off is never taken for a whole one, whichever way its provider cuts it off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from langchain_core.messages import AIMessage
from langchain_core.messages.tool import tool_call

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore

PROMPT = "two red cars"
ITEMS = [
    {"question": "Are there any cars in the image?", "kind": "object", "words": "cars"},
    {"question": "Are there exactly two cars in the image?", "kind": "count", "words": "two cars"},
    {"question": "Are the cars red?", "kind": "attribute", "words": "red cars"},
]
WHOLE = f"Does the image show all of this: {PROMPT}?"
NOTE = "the chat model's list of requirements was cut off or broken"
REASONS: list[dict[str, Any]] = [
    {"finish_reason": "length"},  # OpenAI
    {"finish_reason": "MAX_TOKENS"},  # Google
    {"stop_reason": "max_tokens"},  # Anthropic
    {"stopReason": "max_tokens"},  # Bedrock
    {"done_reason": "length"},  # Ollama
    {"incomplete_details": {"reason": "max_output_tokens"}},  # Responses
    {"finish_reason": "stop"},  # servers that do not say it
    {},
]


def torn(items: list[dict[str, Any]]) -> str:
    """A list with an item after these of which only the beginning is there."""
    return json.dumps({"requirements": items})[:-2] + ', {"question": "Are the'


def without_words(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "words"} for item in items]


def draw(
    folder: Path, lists: list[AIMessage], *, verdicts: AIMessage | None = None, **settings: Any
) -> tuple[dict[str, Any], int, list[str]]:
    """The result of a run whose decomposer gives these answers, the last one again and again; how often it was asked.

    The last part is the notes that were told with the requirements.
    """
    asked: list[list[Any]] = []

    def script(schema: str, messages: list[Any], index: int) -> AIMessage:
        if schema == "Requirements":
            asked.append(messages)
            return lists[min(len(asked), len(lists)) - 1]
        if schema == "Verdicts" and verdicts:
            return verdicts
        all_met = [{"id": f"r{i}", "answer": "yes", "confidence": 0.9, "reason": "seen"} for i in range(1, 5)]
        answers = {"Plan": {"prompt": PROMPT}, "Verdicts": {"verdicts": all_met}}
        return AIMessage(json.dumps(answers[schema]))

    graph = build_graph(
        mllm=ScriptedChatModel(script=script), generator=PaintGenerator(), images=ImageStore(folder / "images")
    )
    told, out = list[str](), dict[str, Any]()
    context = GemsContext(memory=False, seed=5, **settings)
    for mode, part in graph.stream({"prompt": PROMPT}, context=context, stream_mode=["custom", "values"]):
        told += part["notes"] if mode == "custom" and part["event"] == "requirements" else []
        out = part if mode == "values" else out
    return out, len(asked), told


def questions(out: dict[str, Any]) -> list[str]:
    return [requirement.question for requirement in out["requirements"]]


@pytest.mark.parametrize("has_words", [True, False])
@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_what_was_cut_off_every_time_is_asked_as_a_whole_and_told(
    reason: dict[str, Any], has_words: bool, tmp_path: Path
) -> None:
    items = (ITEMS if has_words else without_words(ITEMS))[:2]
    out, _, told = draw(tmp_path, [AIMessage(torn(items), response_metadata=reason)])
    assert questions(out)[-1] == WHOLE
    assert {ITEMS[0]["question"], WHOLE} <= {*questions(out)}
    assert [note for note in out["notes"] if note.startswith(NOTE)] == out["notes"] == told
    assert len(out["attempts"][-1].verdicts) == len(questions(out))


@pytest.mark.parametrize("has_words", [True, False])
@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_the_rest_of_a_list_that_was_cut_off_is_asked_for_once(
    reason: dict[str, Any], has_words: bool, tmp_path: Path
) -> None:
    items = ITEMS if has_words else without_words(ITEMS)
    cut = AIMessage(torn(items[:2]), response_metadata=reason)
    rest = AIMessage(json.dumps({"requirements": [items[2]]}))
    out, asked, told = draw(tmp_path, [cut, cut, rest])
    assert questions(out)[-1] == ITEMS[2]["question"]
    assert WHOLE not in questions(out)
    assert (out["outcome"], out["notes"], told, asked) == ("solved", [], [], 3)


DRAFT = f"I need {json.dumps({'requirements': ITEMS[:1]})} and then"
THOUGHTS = [
    AIMessage(f"<think>{DRAFT}"),
    AIMessage("", additional_kwargs={"reasoning_content": DRAFT}),
    AIMessage([{"type": "reasoning", "reasoning": DRAFT}]),
    AIMessage(f"<think>{DRAFT} that</think>{torn([])}"),
    AIMessage(torn([]), additional_kwargs={"reasoning_content": DRAFT}),
]


@pytest.mark.parametrize("reason", REASONS, ids=str)
@pytest.mark.parametrize("thought", THOUGHTS, ids=["open", "beside", "block", "closed, cut after it", "beside, cut"])
def test_a_draft_in_the_thought_of_an_unfinished_answer_is_no_whole_list(
    thought: AIMessage, reason: dict[str, Any], tmp_path: Path
) -> None:
    cut = thought.model_copy(update={"response_metadata": reason})
    out, asked, told = draw(tmp_path, [cut])
    assert questions(out) == [ITEMS[0]["question"], WHOLE]
    assert [note for note in out["notes"] if note.startswith(NOTE)] == out["notes"] == told
    assert asked == 3
    out, asked, _ = draw(tmp_path, [cut, AIMessage(json.dumps({"requirements": ITEMS}))])
    assert (questions(out), out["notes"], asked) == ([item["question"] for item in ITEMS], [], 2)


YES = json.dumps({"verdicts": [{"id": f"r{i}", "answer": "yes", "confidence": 0.9, "reason": "seen"} for i in (1, 2)]})


@pytest.mark.parametrize("reason", REASONS, ids=str)
@pytest.mark.parametrize(
    "thought",
    [
        AIMessage(f"<think>Perhaps {YES} but the second"),
        AIMessage("", additional_kwargs={"reasoning_content": f"Perhaps {YES} but the second"}),
        AIMessage(f'<think>Perhaps {YES}? No.</think>{{"verdicts": [{{"id": "r1", "ans'),
    ],
    ids=["open", "beside", "closed, cut after it"],
)
def test_a_yes_in_the_thought_of_an_unfinished_answer_is_none(
    thought: AIMessage, reason: dict[str, Any], tmp_path: Path
) -> None:
    cut = thought.model_copy(update={"response_metadata": reason})
    out, _, _ = draw(tmp_path, [AIMessage(json.dumps({"requirements": ITEMS}))], verdicts=cut, max_rounds=1)
    assert out["outcome"] != "solved"
    assert not [verdict for attempt in out["attempts"] for verdict in attempt.verdicts if verdict.answer == "yes"]


CLOSING = "\nThis is my final answer."


@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```"])
@pytest.mark.parametrize("before", ["Okay.\n", "Okay.\n</think>\n", 'Okay, {"requirements": [.\n</think>\n'])
@pytest.mark.parametrize("place", ["text", "beside", "block"])
def test_an_answer_that_ended_is_read_where_its_server_puts_it_into_the_thought(
    place: str, before: str, fence: str, tmp_path: Path
) -> None:
    def answer(form: dict[str, Any]) -> AIMessage:
        thought = before + fence.format(json.dumps(form)) + CLOSING
        message = {
            "text": AIMessage(f"<think>{thought}"),
            "beside": AIMessage("", additional_kwargs={"reasoning_content": thought}),
            "block": AIMessage([{"type": "reasoning", "reasoning": thought}]),
        }[place]
        return message.model_copy(update={"response_metadata": {"finish_reason": "stop"}})

    verdicts = [{"id": f"r{i}", "answer": "yes", "confidence": 0.9, "reason": "seen"} for i in (1, 2, 3)]
    out, asked, told = draw(tmp_path, [answer({"requirements": ITEMS})], verdicts=answer({"verdicts": verdicts}))
    assert questions(out) == [item["question"] for item in ITEMS]
    assert (out["outcome"], out["notes"], told, asked) == ("solved", [], [], 1)


def test_a_call_that_was_cut_off_is_no_whole_list_where_its_server_closes_it(tmp_path: Path) -> None:
    call = tool_call(name="Requirements", args={"requirements": ITEMS[:1]}, id="a")
    cut = AIMessage("", tool_calls=[call], response_metadata={"stop_reason": "max_tokens"})
    out, asked, _ = draw(tmp_path, [cut, AIMessage(json.dumps({"requirements": ITEMS[1:]}))])
    assert questions(out) == [item["question"] for item in ITEMS]
    assert (out["notes"], asked) == ([], 2)


@pytest.mark.parametrize("reason", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}], ids=str)
def test_a_call_that_asks_for_every_word_is_whole_although_a_limit_ended_the_answer(
    reason: dict[str, Any], tmp_path: Path
) -> None:
    def called(items: list[dict[str, Any]]) -> AIMessage:
        call = tool_call(name="Requirements", args={"requirements": items}, id="a")
        return AIMessage("", tool_calls=[call], response_metadata=reason)

    out, asked, _ = draw(tmp_path, [called(ITEMS)])
    assert (questions(out), out["notes"], asked) == ([item["question"] for item in ITEMS], [], 1)
    for items in (ITEMS[:2], ITEMS[::2], ITEMS[1:2]):
        out, _, _ = draw(tmp_path, [called(items)])
        assert questions(out)[-1] == WHOLE


def test_a_list_that_is_whole_is_not_asked_for_again_although_a_limit_ended_the_answer(tmp_path: Path) -> None:
    text = json.dumps({"requirements": ITEMS}) + "\n\n\n"
    out, asked, _ = draw(tmp_path, [AIMessage(text, response_metadata={"finish_reason": "length"})])
    assert questions(out) == [item["question"] for item in ITEMS]
    assert (out["notes"], asked) == ([], 1)


def test_a_model_that_repeats_itself_is_asked_for_the_rest_once(tmp_path: Path) -> None:
    cut = AIMessage(torn([ITEMS[0]] * 3), response_metadata={"finish_reason": "length"})
    out, asked, _ = draw(tmp_path, [cut])
    assert questions(out) == [ITEMS[0]["question"], WHOLE]
    assert asked == 2
    assert out["notes"]


def test_words_without_a_question_are_told_if_the_answer_about_them_is_cut_off_too(tmp_path: Path) -> None:
    """The list itself is whole, but speaks of the cars alone; the comparison with the draft asks for the rest."""
    cut_after_one = AIMessage(torn(ITEMS[1:2]), response_metadata={"finish_reason": "length"})
    out, _, told = draw(tmp_path, [AIMessage(json.dumps({"requirements": ITEMS[:1]})), cut_after_one])
    assert questions(out) == [ITEMS[0]["question"], ITEMS[1]["question"], WHOLE]
    assert out["notes"] == told
    assert told[0].startswith(NOTE)


def test_an_answer_about_words_without_a_question_of_which_nothing_is_whole_is_told(tmp_path: Path) -> None:
    cut = AIMessage('{"requirements": [{"question": "Are', response_metadata={"finish_reason": "length"})
    out, _, _ = draw(tmp_path, [AIMessage(json.dumps({"requirements": ITEMS[:1]})), cut])
    assert questions(out) == [ITEMS[0]["question"], WHOLE]
    assert out["notes"][0].startswith(NOTE)


def test_a_budget_without_room_for_the_rest_is_told_too(tmp_path: Path) -> None:
    cut = AIMessage(torn(ITEMS[:2]), response_metadata={"finish_reason": "length"})
    out, asked, _ = draw(tmp_path, [cut], budget={"chat_calls": 3})
    assert questions(out)[-1] == WHOLE
    assert asked == 1
    assert out["notes"][0].startswith(NOTE)
