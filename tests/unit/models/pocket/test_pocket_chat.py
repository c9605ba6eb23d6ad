"""The pocket chat model through LangChain's interface, as nodes and other code call it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage

from gems.errors import InputError
from gems.faces import run_here
from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Requirement, Usage
from gems.memory.image_store import encode_png
from gems.models.fencing import fence
from gems.models.pocket import vision
from gems.models.pocket.chat import PocketChatModel
from gems.models.pocket.grammar import questions_of
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Group, Item, SceneSpec, layout
from gems.models.pocket.vision import Detection, Sight
from gems.models.pocket.vocabulary import ATTRIBUTES, NUMBER_WORDS, OBJECTS, SINGULARS
from gems.models.registry import init_mllm
from gems.nodes.ask import image_block
from gems.nodes.decomposer import Requirements
from gems.nodes.examiner import inspect_image
from gems.nodes.meter import Meter, metered
from gems.nodes.planner import Plan
from gems.nodes.refiner import Refinement
from gems.skills.loader import load_skills
from gems.skills.tools import skill_tools

PROMPT = "three blue cars to the left of a striped elephant"
SPEC = SceneSpec(
    (
        Group(3, ATTRIBUTES.index("blue"), SINGULARS["car"]),
        Group(1, ATTRIBUTES.index("striped"), SINGULARS["elephant"]),
    ),
    ("to the left of",),
)


def user_message(text: str = PROMPT) -> HumanMessage:
    return HumanMessage(fence("user_prompt", text))


def test_it_is_found_by_name() -> None:
    assert isinstance(init_mllm("pocket"), PocketChatModel)
    with pytest.raises(InputError, match="pocket"):
        init_mllm("gpt-nonsense")


def test_it_calls_the_skills_that_fit_and_then_uses_what_they_teach() -> None:
    tools = skill_tools(load_skills().skills.values())
    model = PocketChatModel().bind_tools([*tools, Plan])
    first = model.invoke([SystemMessage("Write a prompt."), user_message()])
    assert {c["name"] for c in first.tool_calls} == {"counting", "spatial-layout", "attribute-binding"}
    answers = [
        ToolMessage(next(t for t in tools if t.name == c["name"]).invoke({}), tool_call_id=c["id"])
        for c in first.tool_calls
    ]
    second = model.invoke([user_message(), first, *answers])
    [call] = second.tool_calls
    assert call["name"] == "Plan"
    assert call["args"]["prompt"].startswith("exactly three blue cars in a ")
    assert second.usage_metadata is not None
    assert second.usage_metadata["total_tokens"] > 0


def test_a_single_thing_needs_no_skill() -> None:
    model = PocketChatModel().bind_tools([*skill_tools(load_skills().skills.values()), Plan])
    [call] = model.invoke([user_message("a cat")]).tool_calls
    assert (call["name"], call["args"]) == ("Plan", {"prompt": "a cat"})


def test_without_skills_it_writes_the_plain_sentence() -> None:
    plan: Any = PocketChatModel().with_structured_output(Plan).invoke([user_message("2 kitties")])
    assert plan.prompt == "two cats"


def test_experience_in_memory_teaches_as_a_skill_does() -> None:
    memory = fence("memory", "- Asked: two dogs | Learned: `{places}` and `{clauses}` worked")
    plan: Any = (
        PocketChatModel()
        .with_structured_output(Plan)
        .invoke([HumanMessage(f"{fence('user_prompt', 'two cats')}\n{memory}")])
    )
    assert plan.prompt.startswith("two cats placed ")


def test_it_decomposes_into_the_benchmarks_atoms() -> None:
    answer: Any = PocketChatModel().with_structured_output(Requirements).invoke([user_message()])
    assert [(r.question, r.kind) for r in answer.requirements] == [
        (text, question.kind) for text, question in questions_of(SPEC)
    ]


def test_it_judges_from_pixels() -> None:
    requirements = [
        Requirement(id=f"r{i}", question=text, kind=q.kind) for i, (text, q) in enumerate(questions_of(SPEC))
    ]
    rng = np.random.default_rng(0)
    right = draw_scene(layout(SPEC, rng).items, style=1)
    wrong = draw_scene(layout(SceneSpec((Group(2, 3, SINGULARS["dog"]),), ()), rng).items, style=1)
    model = PocketChatModel()
    with metered(GemsState(run_id="r", usage=Usage()), "verifier", GemsContext()) as meter:
        verdicts = run_here(inspect_image(meter, model, requirements, encode_png(right, {}))).verdicts
        assert [v.answer for v in verdicts] == ["yes"] * len(requirements)
        assert meter.usage.chat_calls == 1
        unseen = run_here(inspect_image(meter, model, requirements, encode_png(wrong, {}))).verdicts
    assert {v.answer for v in unseen} == {"no"}
    assert "no cars seen" in unseen[0].reason


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.03, 1), st.floats(0, 1), st.floats(0, 1)), max_size=9),
    st.lists(st.integers(1, 7), min_size=1, max_size=3, unique=True),
)
def test_its_answers_about_one_image_do_not_contradict_each_other(
    things: list[tuple[float, float, float]], counts: list[int]
) -> None:
    dog = SINGULARS["dog"]
    detections = [
        Detection(Item(dog, 1, x, y, 0.2, 0.5), score, np.eye(len(OBJECTS))[dog], np.eye(len(ATTRIBUTES))[1])
        for score, x, y in things
    ]
    texts = [
        f"Are there exactly {NUMBER_WORDS[n - 1]} dogs in the image?"
        if n > 1
        else "Is there exactly one dog in the image?"
        for n in counts
    ]
    questions = [Requirement(id="r0", question="Are there any dogs in the image?", kind="object")]
    questions += [Requirement(id=f"r{i}", question=text, kind="count") for i, text in enumerate(texts, start=1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "look", lambda image: Sight(detections))
        meter = Meter(Usage(), GemsContext())
        there, *numbers = run_here(
            inspect_image(meter, PocketChatModel(), questions, encode_png(draw_scene([], style=0), {}))
        ).verdicts
    assert len({v.reason.partition(",")[0] for v in (there, *numbers)}) == 1, "one number of things"
    assert there.reason.startswith("no dogs") is (there.answer == "no")
    assert sum(v.answer == "yes" for v in numbers) <= (there.answer == "yes")
    for n, verdict in zip(counts, numbers, strict=True):
        number = f"{NUMBER_WORDS[n - 1]} dog{'s' * (n > 1)} seen"
        assert (verdict.reason == number) is (verdict.answer == "yes"), verdict


def test_a_question_it_cannot_read_is_unsure() -> None:
    strange = [Requirement(id="r1", question="Is the mood melancholic?", kind="style")]
    image = encode_png(draw_scene([], style=0), {})
    [verdict] = run_here(inspect_image(Meter(Usage(), GemsContext()), PocketChatModel(), strange, image)).verdicts
    assert verdict.answer == "unsure"
    assert "vocabulary" in verdict.reason


def test_it_learns_a_wording_from_what_solved_a_past_run() -> None:
    def plan(memory: str) -> str:
        text = "\n".join([fence("user_prompt", PROMPT), fence("memory", memory)])
        answer: Any = PocketChatModel().with_structured_output(Plan).invoke([HumanMessage(text)])
        return str(answer.prompt)

    rich = "two red dogs in a row on the left in the foreground; one cat at the top in the background"
    planned_prompt = plan(
        f"- Asked: two red dogs and a cat | Best generation prompt (solved): {rich} Learned: nothing."
    )
    assert ";" in planned_prompt
    assert any(f" {where} " in f"{planned_prompt} " for where in ("left", "right", "middle", "top", "bottom"))
    for nothing in (
        f"- Asked: two red dogs and a cat | Best generation prompt (not solved): {rich}",
        "- Asked: a cat | Best generation prompt (solved): a cat",
    ):
        assert plan(nothing) == PROMPT


def test_it_answers_visual_questions_in_one_word_with_log_probabilities() -> None:
    items = layout(SPEC, np.random.default_rng(0)).items
    block = image_block(encode_png(draw_scene(items, style=1), {}), 1024)

    def ask(question: str) -> tuple[str, dict[str, float]]:
        text = {"type": "text", "text": f"{question} Answer in one word."}
        answer = PocketChatModel().invoke([HumanMessage([block, text])])
        if not answer.response_metadata:
            return str(answer.content), {}
        [token] = answer.response_metadata["logprobs"]["content"]
        chances = {t["token"]: float(np.exp(t["logprob"])) for t in token["top_logprobs"]}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-6)
        return str(answer.content), chances

    assert ask("How many cars are in the image?")[0] == "three"
    answer, chances = ask("Is the elephant striped?")
    assert answer == "Yes"
    assert chances["Yes"] > 0.8
    assert ask("Are the cars red?")[0] == "No"
    assert ask("Is it art?") == ("Unknown", {})


def test_equal_conversations_give_equal_answers_and_further_tries_differ() -> None:
    def refine(tries: int) -> str:
        history = "\n".join(f"{n}.0 rewrite: 5/7 passed, failed r2" for n in range(1, tries + 1))
        text = "\n".join(
            [
                fence("user_prompt", PROMPT),
                fence("history", history),
                fence(
                    "best_attempt", "prompt: x\nfix (count, no): Are there exactly three cars in the image? two seen"
                ),
            ]
        )
        answer: Any = PocketChatModel().with_structured_output(Refinement).invoke([HumanMessage(text)])
        assert "count" in answer.experience
        return str(answer.prompt)

    assert refine(1) == refine(1)
    assert len({refine(n) for n in range(1, 5)}) >= 3


def test_unknown_words_are_bad_input() -> None:
    with pytest.raises(InputError, match="dragon"):
        PocketChatModel().with_structured_output(Requirements).invoke([user_message("a dragon")])


def test_other_questions_get_a_self_description() -> None:
    answer = PocketChatModel().invoke("Write me a poem.")
    assert "pocket model" in answer.text
    assert "--mllm" in answer.text


def test_where_nothing_was_drawn_the_refiner_tells_of_no_attempts_and_rewords_at_each_refusal() -> None:
    def refine(*refused: str) -> Refinement:
        text = "\n".join([fence("user_prompt", PROMPT), fence("history", ""), fence("refused", "\n".join(refused))])
        answer: Any = PocketChatModel().with_structured_output(Refinement).invoke([HumanMessage(text)])
        return cast(Refinement, answer)

    first, second = refine("x"), refine("x", "y")
    assert first.experience.startswith("Nothing was drawn so far. Next wording tried: ")
    assert "fail" not in second.experience
    assert first.prompt != second.prompt
