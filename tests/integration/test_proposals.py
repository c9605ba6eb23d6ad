"""Rounds with several proposals, each drawn by a task of its own; and images that are verified as they arrive."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import TASKS
from langgraph.runtime import RunControl
from langgraph.types import Send
from PIL import Image

import gems
from gems.errors import BackendError, ContentRefusedError, InputError
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.models.generators import GeneratedImage, ImageRequest, StepCallback
from gems.models.servers.openai_images import OpenAIImages
from gems.nodes.retry import RETRY
from gems.options import GeneratorOptions
from gems.runs.checkpoints import open_checkpoints
from gems.runs.threads import reopen_failed, reopen_limited, run_thread
from gems.serve.quotas import max_usage

PROMPT, DRAFT = "a red car", "a red car in a street"
QUICK = RETRY._replace(initial_interval=0.001, max_interval=0.002, jitter=False)
SETTINGS = {"memory": False, "skills": False, "seed": 10, "candidates": 4, "proposals": 3}
THREAD: Any = {"configurable": {"thread_id": "t"}}


def answers(*passing: int) -> Callable[[str, list[Any], int], Any]:
    """The script of a chat model whose verdicts pass at these calls, counted from 0."""

    def answer(form: str, messages: list[Any], index: int) -> Any:
        if form == "Verdicts":
            word = "yes" if index in passing else "no"
            return {"verdicts": [{"id": "r1", "answer": word, "confidence": 0.9, "reason": "seen"}]}
        return {
            "Plan": {"prompt": DRAFT, "parts": [{"words": PROMPT, "phrase": PROMPT}]},
            "Requirements": {"requirements": [{"question": "Is there a red car?", "kind": "object", "words": PROMPT}]},
            "Refinement": {"experience": "x", "strategy": "rewrite", "prompt": f"a red car, take {index}"},
        }[form]

    return answer


def build(folder: Path, generator: Any = None, model: Any = None, **settings: Any) -> Any:
    return gems.build_graph(
        mllm=model or ScriptedChatModel(script=answers()),
        generator=generator or PaintGenerator(),
        images=ImageStore(folder / "images"),
        checkpointer=InMemorySaver(),
        retry=QUICK,
        settings={**SETTINGS, **settings},
    )


def fail_at(prompt: str, error: Exception, times: int = 10**6) -> Callable[[ImageRequest, int], Exception | None]:
    left = [times]

    def fail(request: ImageRequest, index: int) -> Exception | None:
        if request.prompt != prompt or not left[0]:
            return None
        left[0] -= 1
        return error

    return fail


@pytest.mark.parametrize("is_async", [False, True])
def test_a_rounds_images_are_dealt_out_among_its_proposals(is_async: bool, tmp_path: Path) -> None:
    graph, events = build(tmp_path, max_rounds=2), list[Any]()
    if is_async:

        async def follow() -> None:
            async for event in graph.astream({"prompt": PROMPT}, THREAD, stream_mode="custom"):
                events.append(event)

        asyncio.run(follow())
    else:
        events += graph.stream({"prompt": PROMPT}, THREAD, stream_mode="custom")
    state = graph.get_state(THREAD).values
    drawn = [(a.round, a.candidate, a.strategy, a.prompt, a.seed) for a in state["attempts"]]
    assert drawn == [
        (1, 0, "plan", DRAFT, 10),
        (1, 1, "asked", PROMPT, 11),
        (1, 2, "plan", DRAFT, 12),
        (1, 3, "asked", PROMPT, 13),
        (2, 0, "rewrite", "a red car, take 0", 14),
        (2, 1, "reseed", DRAFT, 15),
        (2, 2, "asked", PROMPT, 16),
        (2, 3, "rewrite", "a red car, take 0", 17),
    ]
    assert (state["outcome"], state["usage"].images, all(a.verified for a in state["attempts"])) == ("rounds", 8, True)
    announced = [(e["round"], e["proposal"], e["strategy"]) for e in events if e["event"] == "prompt"]
    first = [(1, 0, "plan"), (1, 1, "asked")]
    assert announced == [*first, (2, 0, "rewrite"), (2, 1, "reseed"), (2, 2, "asked")]


def test_each_proposal_has_an_image(tmp_path: Path) -> None:
    settings = GemsContext(proposals=3, max_rounds=2)
    assert (settings.images_per_round, max_usage(settings)["images"]) == (3, 6)
    state = build(tmp_path, candidates=1, max_rounds=2).invoke({"prompt": PROMPT}, THREAD)
    drawn = [(a.round, a.strategy, a.seed) for a in state["attempts"]]
    assert drawn[:3] == [(1, "plan", 10), (1, "asked", 11), (1, "plan", 12)]
    assert drawn[3:] == [(2, "rewrite", 13), (2, "reseed", 14), (2, "asked", 15)]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BackendError("the server is gone", retryable=False), "generator: the server is gone"),
        (ContentRefusedError("not this"), "generator: not this"),
    ],
)
def test_a_proposal_that_cannot_be_drawn_costs_the_others_nothing(error: Exception, line: str, tmp_path: Path) -> None:
    graph = build(tmp_path, PaintGenerator(fail_at(DRAFT, error)), ScriptedChatModel(script=answers(1)))
    out = graph.invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["errors"], out["usage"].images) == ("solved", [line], 2)
    assert {attempt.prompt for attempt in out["attempts"]} == {PROMPT}


def test_a_refused_proposal_is_not_proposed_again(tmp_path: Path) -> None:
    refuses = PaintGenerator(fail_at(PROMPT, ContentRefusedError("not this")))
    model = ScriptedChatModel(script=answers())
    out = build(tmp_path, refuses, model, max_rounds=3).invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["attempts"][-1].round) == ("rounds", 3)
    assert [r.prompt for r in refuses.requests].count(PROMPT) == 2, "both its images, in the first round"
    assert [c[1][-1].text.count("<refused>") for c in model.calls if c[0] == "Refinement"] == [1, 1]


def test_all_refused_is_reworded_and_all_failed_ends_the_run(tmp_path: Path) -> None:
    refused = [ContentRefusedError("no") if i < 4 else None for i in range(100)]
    out = build(tmp_path, PaintGenerator(lambda r, i: refused[i]), max_rounds=4).invoke({"prompt": PROMPT}, THREAD)
    assert (out["attempts"][0].round, out["attempts"][0].strategy) == (1, "rewrite")
    broken = PaintGenerator(lambda r, i: BackendError("broken", retryable=False))
    out = build(tmp_path, broken).invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["image"], out["errors"]) == ("failed", None, ["generator: broken"] * 2)


def test_tries_of_both_tasks_are_counted(tmp_path: Path) -> None:
    def fail(request: ImageRequest, index: int) -> Exception | None:
        return BackendError("busy", retryable=True) if index < 4 else None

    paints = PaintGenerator(fail)
    out = build(tmp_path, paints, ScriptedChatModel(script=answers(0))).invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["errors"]) == ("solved", [])
    assert (len(paints.requests), out["usage"].images) == (8, 4)


@pytest.mark.parametrize("images", [1, 3])
def test_a_limit_on_images_holds_for_all_proposals_together(images: int, tmp_path: Path) -> None:
    out = build(tmp_path, budget={"images": images}).invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["usage"].images, len(out["attempts"])) == ("budget", images, images)


@pytest.mark.parametrize("limit", [{"images": 4}, {"cost": 4.0, "prices": {"image": 1.0}}])
def test_tries_of_all_tasks_together_stay_within_a_limit_on_images(
    limit: dict[str, Any], image_server: str, tmp_path: Path
) -> None:
    """Each try that a server took may be charged."""
    address = f"{image_server}/worn~{uuid.uuid4().hex}"
    painter = OpenAIImages("painter", name="openai:painter", options=GeneratorOptions(base_url=f"{address}/v1"))
    out = build(tmp_path, painter, candidates=3, budget=limit).invoke({"prompt": PROMPT}, THREAD)
    with urlopen(f"{image_server}/log") as log:
        requests = [entry for entry in json.load(log)["seen"] if entry["name"] == address.rpartition("/")[2]]
    assert (out["outcome"], out["usage"].images, len(requests)) == ("failed", 4, 4)


def test_what_is_drawn_is_kept_when_another_task_raises(tmp_path: Path) -> None:
    paints = PaintGenerator(fail_at(PROMPT, ZeroDivisionError("a bug"), times=1))
    graph = build(tmp_path, paints, ScriptedChatModel(script=answers(3)))
    with pytest.raises(ZeroDivisionError):
        graph.invoke({"prompt": PROMPT}, THREAD)
    before = len(paints.requests)
    out = run_thread(graph, "t", PROMPT, GemsContext.model_validate(SETTINGS))
    assert (out["outcome"], len(out["attempts"])) == ("solved", 4)
    assert [request.prompt for request in paints.requests[before:]] == [PROMPT, PROMPT]


def test_a_failed_round_is_drawn_again_without_another_plan(tmp_path: Path) -> None:
    left = [True]
    paints = PaintGenerator(lambda r, i: BackendError("gone", retryable=False) if left[0] else None)
    model = ScriptedChatModel(script=answers(0))
    graph = build(tmp_path, paints, model)
    context = GemsContext.model_validate(SETTINGS)
    assert run_thread(graph, "t", PROMPT, context)["outcome"] == "failed"
    left[0] = False
    reopen_failed(graph, "t")
    out = run_thread(graph, "t", PROMPT, context)
    assert (out["outcome"], [c[0] for c in model.calls].count("Plan"), len(out["attempts"])) == ("solved", 1, 4)


def test_a_run_that_a_limit_on_images_ended_goes_on_where_it_was(tmp_path: Path) -> None:
    model = ScriptedChatModel(script=answers(4))
    graph = build(tmp_path, None, model, budget={"images": 4})
    context = GemsContext.model_validate({**SETTINGS, "budget": {"images": 4}})
    assert run_thread(graph, "t", PROMPT, context)["outcome"] == "budget"
    calls = len(model.calls)
    graph = gems.build_graph(
        mllm=model,
        generator=PaintGenerator(),
        images=ImageStore(tmp_path / "images"),
        checkpointer=graph.checkpointer,
        settings=SETTINGS,
    )
    reopen_limited(graph, "t")
    out = run_thread(graph, "t", PROMPT, GemsContext.model_validate(SETTINGS))
    assert (out["outcome"], len(out["attempts"]), out["usage"].chat_calls) == ("solved", 8, calls + 2)


@pytest.mark.parametrize("proposals", [["one car"], ["one car", "two cars", "three cars", "four cars", "five cars"]])
def test_a_fork_draws_what_a_person_proposes(proposals: list[str], tmp_path: Path) -> None:
    graph = build(tmp_path, max_rounds=1)
    graph.invoke({"prompt": PROMPT}, THREAD)
    before = next(s for s in graph.get_state_history(THREAD) if set(s.next) == {"generator"})
    fork = graph.update_state(before.config, {"proposals": [{"prompt": prompt} for prompt in proposals]})
    out = graph.invoke(None, fork)
    assert {(attempt.strategy, attempt.prompt) for attempt in out["attempts"]} == {("person", p) for p in proposals}
    assert len(out["attempts"]) == max(4, len(proposals))


def test_a_fork_draws_no_more_prompts_than_a_setting_may_ask_for(tmp_path: Path) -> None:
    paints = PaintGenerator()
    graph = build(tmp_path, paints, max_rounds=1, candidates=1, proposals=1)
    graph.invoke({"prompt": PROMPT}, THREAD)
    before = next(s for s in graph.get_state_history(THREAD) if set(s.next) == {"generator"})
    drawn = len(paints.requests)
    with pytest.raises(InputError, match="17 proposals; a round draws 16 at most"):
        graph.invoke(
            None, graph.update_state(before.config, {"proposals": [{"prompt": f"car {n}"} for n in range(17)]})
        )
    assert len(paints.requests) == drawn


def _sent(tasks: list[Send], number: int = 1, **fields: Any) -> list[Send]:
    return [Send(tasks[0].node, {**tasks[0].arg, **fields})] * number


@pytest.mark.parametrize(
    "change",
    [
        lambda tasks: _sent(tasks, places=10**15),
        lambda tasks: _sent(tasks, number=2),
        lambda tasks: [_sent(tasks, place=place, places=20)[0] for place in range(20)],
        lambda tasks: _sent(tasks, place=-1),
        lambda tasks: _sent(tasks, places=0),
        lambda tasks: _sent(tasks, round=0),
        lambda tasks: _sent(tasks, usage=None),
        lambda tasks: _sent(tasks, proposal={"prompt": "x", "strategy": "plan"}),
        lambda tasks: _sent(tasks, proposal=tasks[0].arg["proposal"].model_copy(update={"prompt": "x" * 200_000})),
        lambda tasks: [Send("store_memory", tasks[0].arg)],
        lambda tasks: [Send("generator", "x")],
        lambda tasks: [1],
        lambda tasks: 1,
    ],
)
@pytest.mark.parametrize("is_pending", [False, True])
def test_no_checkpoint_of_somebody_else_sends_tasks_of_its_own(change: Any, is_pending: bool, tmp_path: Path) -> None:
    paints = PaintGenerator(fail_at(DRAFT, ZeroDivisionError("a bug")))

    def graph_of(saver: Any) -> Any:
        return gems.build_graph(
            mllm=ScriptedChatModel(script=answers()),
            generator=paints,
            images=ImageStore(tmp_path / "images"),
            checkpointer=saver,
            settings={**SETTINGS, "candidates": 1, "proposals": 1, "budget": {"images": 4}},
        )

    with open_checkpoints(tmp_path / "c.sqlite") as saver:
        with pytest.raises(ZeroDivisionError):
            graph_of(saver).invoke({"prompt": PROMPT}, THREAD)
        saved = saver.get_tuple(THREAD)
        assert saved is not None
        values = saved.checkpoint["channel_values"]
        tasks = change(values[TASKS])
        if is_pending:
            saver.put_writes(
                saved.config, [(TASKS, task) for task in (tasks if isinstance(tasks, list) else [tasks])], "x"
            )
        else:
            saver.put(
                {"configurable": {**THREAD["configurable"], "checkpoint_ns": ""}},
                {**saved.checkpoint, "id": str(uuid6()), "channel_values": {**values, TASKS: tasks}},
                saved.metadata,
                {},
            )
    drawn = len(paints.requests)
    with (
        open_checkpoints(tmp_path / "c.sqlite") as saver,
        pytest.raises(InputError, match="holds no usable checkpoint"),
    ):
        run_thread(graph_of(saver), "t", PROMPT, GemsContext.model_validate(SETTINGS))
    assert len(paints.requests) == drawn


def test_a_thread_from_before_there_were_proposals_goes_on(tmp_path: Path) -> None:
    graph = build(tmp_path, model=ScriptedChatModel(script=answers(0)), proposals=1)
    graph.invoke({"prompt": PROMPT}, THREAD, interrupt_before=["generator"])
    old = {"proposals": [], "draft": "a car of old", "strategy": "rewrite"}
    graph.update_state(THREAD, old, as_node="cross_check")
    out = graph.invoke(None, THREAD)
    assert {(a.strategy, a.prompt) for a in out["attempts"]} == {("rewrite", "a car of old")}


def begun_by_an_older_version(folder: Path, model: ScriptedChatModel, next_node: str, **settings: Any) -> Any:
    """A graph with a thread that was stopped before a node, and whose state is an older version's."""
    graph = build(folder, model=model, proposals=1, **settings)
    graph.invoke({"prompt": PROMPT}, THREAD, interrupt_before=[next_node])
    old = {"round": 0, "proposals": [], "draft": DRAFT, "strategy": "plan"}
    graph.update_state(THREAD, old, as_node={"verifier": "generator", "generator": "cross_check"}[next_node])
    return graph


@pytest.mark.parametrize("next_node", ["generator", "verifier"])
def test_a_thread_of_an_older_version_goes_on(next_node: str, tmp_path: Path) -> None:
    model = ScriptedChatModel(script=answers(4))
    graph = begun_by_an_older_version(tmp_path, model, next_node)
    out = run_thread(graph, "t", PROMPT, GemsContext.model_validate({**SETTINGS, "proposals": 1}))
    assert (out["outcome"], len(out["attempts"]), model.count("Verdicts")) == ("solved", 8, 5)


def test_a_thread_of_an_older_version_whose_images_are_looked_at_as_they_arrive_goes_on(tmp_path: Path) -> None:
    server = SlowServer()
    model = letting_arrive(server, [13, 12, 11, 10], 3, looks=3)
    graph = begun_by_an_older_version(tmp_path, model, "generator")
    on_server = build(tmp_path, server, model, proposals=1)
    on_server.checkpointer = graph.checkpointer
    out = run_thread(on_server, "t", PROMPT, GemsContext.model_validate({**SETTINGS, "proposals": 1}))
    assert (out["outcome"], len(out["attempts"]), out["usage"].chat_calls) == ("solved", 4, len(model.calls))


def test_a_thread_of_an_older_version_goes_on_behind_a_limit(tmp_path: Path) -> None:
    model = ScriptedChatModel(script=answers(4))
    graph = begun_by_an_older_version(tmp_path, model, "verifier", max_rounds=1)
    assert graph.invoke(None, THREAD)["outcome"] == "rounds"
    more = build(tmp_path, model=model, proposals=1)
    more.checkpointer = graph.checkpointer
    reopen_limited(more, "t")
    out = run_thread(more, "t", PROMPT, GemsContext.model_validate({**SETTINGS, "proposals": 1}))
    assert (out["outcome"], len(out["attempts"]), model.count("Verdicts")) == ("solved", 8, 5)


class SlowServer(PaintGenerator):
    """Draws for many at once, as a server does; each image of a seed waits until it may arrive."""

    draws_for_many = True

    def __init__(self) -> None:
        super().__init__()
        self.may_arrive = {seed: threading.Event() for seed in range(10, 14)}

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        assert self.may_arrive[requests[0].seed].wait(20)
        return super().generate(requests, on_step=on_step)


def letting_arrive(server: SlowServer, order: list[int], *passing: int, looks: int = 4) -> ScriptedChatModel:
    """A chat model that lets the next image arrive at each look, in this order of seeds; the rest at the last look."""
    server.may_arrive[order[0]].set()
    script = answers(*passing)

    def answer(form: str, messages: list[Any], index: int) -> Any:
        if form == "Verdicts":
            is_last = index in passing or index + 1 >= looks
            for seed in server.may_arrive if is_last else order[index + 1 : index + 2]:
                server.may_arrive[seed].set()
        return script(form, messages, index)

    return ScriptedChatModel(script=answer)


class RaisingServer(PaintGenerator):
    """A client of a server that raises its errors, rather than to return them."""

    draws_for_many = True


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_passing", [False, True])
def test_what_a_server_has_drawn_is_kept_when_it_raises(is_passing: bool, is_async: bool, tmp_path: Path) -> None:
    def fail(request: ImageRequest, index: int) -> Exception | None:
        time.sleep(0.05 if request.seed == 12 else 0)  # until others have been looked at
        return BackendError("gone", retryable=is_passing) if request.seed == 12 else None

    server, model = RaisingServer(fail), ScriptedChatModel(script=answers())
    server.generate = raising(server.generate)  # type: ignore[method-assign]
    graph = build(tmp_path, server, model, proposals=1, max_rounds=1)
    out = (
        asyncio.run(graph.ainvoke({"prompt": PROMPT}, THREAD)) if is_async else graph.invoke({"prompt": PROMPT}, THREAD)
    )
    assert (out["outcome"], out["errors"], out["usage"].images) == ("rounds", ["generator: gone"], 3)
    assert [(a.seed, a.verified) for a in out["attempts"]] == [(10, True), (11, True), (13, True)]
    assert (model.count("Verdicts"), len(server.requests)) == (3, 6 if is_passing else 4), "nothing is paid twice"


@pytest.mark.parametrize("draws_for_many", [False, True])
def test_a_refusal_that_is_raised_is_reworded(draws_for_many: bool, tmp_path: Path) -> None:
    paints = PaintGenerator(fail_at(DRAFT, ContentRefusedError("not this")))
    paints.draws_for_many = draws_for_many  # type: ignore[attr-defined]
    paints.generate = raising(paints.generate)  # type: ignore[method-assign]
    out = build(tmp_path, paints, proposals=1, max_rounds=2).invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["errors"]) == ("rounds", ["generator: not this"])
    assert {(attempt.strategy, attempt.verified) for attempt in out["attempts"]} == {("rewrite", True)}


@pytest.mark.parametrize("returned", [None, [], [None] * 4, [Image.new("RGB", (8, 8))] * 4, [ValueError("x")] * 4])
def test_what_a_generator_should_have_returned_is_told(returned: Any, tmp_path: Path) -> None:
    paints = PaintGenerator()
    paints.generate = lambda requests, on_step=None: returned  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"the generator paint returned .* for 4 requests: it has to return a list"):
        build(tmp_path, paints, proposals=1).invoke({"prompt": PROMPT}, THREAD)


def test_a_group_that_is_drawn_is_kept_when_the_next_one_raises(tmp_path: Path) -> None:
    def fail(request: ImageRequest, index: int) -> Exception | None:
        return ConnectionResetError("gone") if request.seed == 11 else None

    class PaintsOne(PaintGenerator):
        batch_size = 1

        @property
        def replicas(self) -> Any:
            return SimpleNamespace(devices=["cpu"])

        def load(self) -> None:
            self.is_loaded = True

    out = build(tmp_path, PaintsOne(fail), proposals=1, max_rounds=1).invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["errors"], out["usage"].images) == ("rounds", ["generator: gone"], 1)
    assert [(a.seed, a.verified) for a in out["attempts"]] == [(10, True)]


def raising(generate: Any) -> Any:
    def generate_or_raise(requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> Any:
        results = generate(requests, on_step=on_step)
        if error := next((result for result in results if isinstance(result, BackendError)), None):
            raise error
        return results

    return generate_or_raise


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("order", [[10, 11, 12, 13], [13, 12, 11, 10]])
def test_an_image_is_verified_while_others_are_drawn(order: list[int], is_async: bool, tmp_path: Path) -> None:
    """Each image arrives only once the one before it is looked at: otherwise, this would wait for ever."""
    server = SlowServer()
    model = letting_arrive(server, order)
    graph = build(tmp_path, server, model, proposals=1, max_rounds=1)
    if is_async:
        out = asyncio.run(graph.ainvoke({"prompt": PROMPT}, THREAD))
    else:
        out = graph.invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["usage"].images, out["usage"].chat_calls) == ("rounds", 4, 6)
    assert [(a.seed, a.verified) for a in out["attempts"]] == [(seed, True) for seed in range(10, 14)]


def test_the_first_pass_ends_the_looks(tmp_path: Path) -> None:
    server = SlowServer()
    model = letting_arrive(server, [13, 12, 11, 10], 1)
    graph = build(tmp_path, server, model, proposals=1)
    out = graph.invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["usage"].images, model.count("Verdicts")) == ("solved", 4, 2)
    assert [a.seed for a in out["attempts"] if a.passed] == [12]
    assert out["image"] == out["attempts"][2].image


def test_a_look_that_fails_is_left_to_the_verifier(tmp_path: Path) -> None:
    server, failures = SlowServer(), [True]
    model = letting_arrive(server, [10, 11, 12, 13], 1)
    script = model.script

    def answer(form: str, messages: list[Any], index: int) -> Any:
        if form == "Verdicts" and failures.pop() if failures else False:
            for event in server.may_arrive.values():
                event.set()
            return BackendError("the verifier is gone", retryable=False)
        return script(form, messages, index)

    model.script = answer
    out = build(tmp_path, server, model, proposals=1).invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["errors"], out["usage"].chat_calls) == ("solved", [], len(model.calls))


def test_no_look_begins_in_a_run_that_is_to_stop(tmp_path: Path) -> None:
    server, control = SlowServer(), RunControl()
    model = letting_arrive(server, [10, 11, 12, 13])
    script = model.script

    def answer(form: str, messages: list[Any], index: int) -> Any:
        if form == "Verdicts" and not index:
            control.request_drain("stopped")
            server.may_arrive[11].set()
            time.sleep(0.3)  # until that image has arrived
            for event in server.may_arrive.values():
                event.set()
        return script(form, messages, index)

    model.script = answer
    graph, context = build(tmp_path, server, model, proposals=1), GemsContext.model_validate(SETTINGS)
    out = run_thread(graph, "t", PROMPT, context, control=control)
    assert (model.count("Verdicts"), [a.verified for a in out["attempts"]]) == (1, [True, False, False, False])


def test_looks_count_for_the_limit_on_calls(tmp_path: Path) -> None:
    server = SlowServer()
    model = letting_arrive(server, [10, 11, 12, 13], looks=2)
    settings = {"proposals": 1, "budget": {"chat_calls": 4}}
    out = build(tmp_path, server, model, **settings).invoke({"prompt": PROMPT}, THREAD)
    assert (out["outcome"], out["usage"].chat_calls, len(model.calls)) == ("budget", 4, 4)
