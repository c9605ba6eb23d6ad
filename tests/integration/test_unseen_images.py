"""Images that nobody has looked at: nothing takes them for images that were looked at and found bad."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pyarrow.parquet as pq
import pytest
from fakes import PaintGenerator, ScriptedChatModel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command

import gems
from gems.memory.image_store import ImageStore
from gems.memory.trajectory import namespace

PROMPT, DRAFT = "a red car", "a red car in a street"
SETTINGS = {"memory": False, "skills": False, "seed": 10}
THREAD: Any = {"configurable": {"thread_id": "t"}}


def verdict(word: str, id_: str = "r1") -> dict[str, Any]:
    return {"verdicts": [{"id": id_, "answer": word, "confidence": 0.9, "reason": "seen"}]}


def model(look: Callable[[int], Any]) -> ScriptedChatModel:
    """A chat model that says this about the images, by the number of the look."""

    def answer(form: str, messages: list[Any], index: int) -> Any:
        if form == "Verdicts":
            return look(index)
        return {
            "Plan": {"prompt": DRAFT, "parts": [{"words": PROMPT, "phrase": PROMPT}]},
            "Requirements": {"requirements": [{"question": "Is there a red car?", "kind": "object", "words": PROMPT}]},
            "Refinement": {"experience": "x", "strategy": "rewrite", "prompt": f"a red car, take {index}"},
        }[form]

    return ScriptedChatModel(script=answer)


def build(folder: Path, chat: ScriptedChatModel, generator: Any = None, **settings: Any) -> Any:
    return gems.build_graph(
        mllm=chat,
        generator=generator or PaintGenerator(),
        images=ImageStore(folder / "images"),
        checkpointer=InMemorySaver(),
        store=InMemoryStore(),
        settings={**SETTINGS, **settings},
    )


@pytest.mark.slow
def test_a_batch_says_which_images_were_looked_at_and_pairs_no_others(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red car\n")
    out, home = tmp_path / "out", tmp_path / "home"
    models = ("--generator", "pocket", "--mllm", "pocket", "--no-plan")
    batch = forked.gems("batch", tmp_path / "p.txt", "--out", out, "--candidates", 3, *models, home=home)
    assert batch.returncode == 0, batch.stderr
    attempts = json.loads((out / "results.jsonl").read_text())["attempts"]
    assert [(a["verified"], a["total"] > 0) for a in attempts] == [(True, True), (False, False), (False, False)]
    [row] = pq.read_table(out / "index.parquet").to_pylist()
    assert [a["verified"] for a in row["attempts"]] == [True, False, False]
    pairs = forked.gems("export", out, "--to", "preferences", "--out", tmp_path / "pairs", home=home)
    assert pairs.returncode == 2
    assert "2 images have no verdict on every requirement" in " ".join(pairs.stderr.split())


def test_a_person_may_reject_an_image_whose_neighbours_needed_no_look(tmp_path: Path) -> None:
    chat = model(lambda index: verdict("yes"))
    graph = build(tmp_path, chat, candidates=2, max_rounds=2, review="rounds")
    [question] = graph.invoke({"prompt": PROMPT}, THREAD)["__interrupt__"]
    assert "reject" in question.value["actions"]
    graph.invoke(Command(resume={"action": "reject", "comment": "too dark"}), THREAD)
    [request] = [messages for form, messages, _ in chat.calls if form == "Refinement"]
    report = request[-1].text
    assert "1.1 plan: not checked" in report
    assert "latest_attempt" not in report  # the image that the person has seen is the best one, too
    assert "keep (object): Is there a red car?" in report


def test_a_tool_does_not_say_that_an_image_passed_at_which_nobody_looked(tmp_path: Path) -> None:
    seconds = 1.5

    class LastingGenerator(PaintGenerator):
        def generate(self, *args: Any, **options: Any) -> Any:
            time.sleep(seconds)
            return super().generate(*args, **options)

    graph = build(tmp_path, model(lambda index: verdict("yes")), LastingGenerator(), budget={"seconds": seconds})
    told = json.loads(gems.as_tool(graph).invoke({"prompt": PROMPT}, THREAD))
    assert (told["score"], told["not_checked"]) == (None, ["Is there a red car?"])


@pytest.mark.parametrize("answers", [True, False])
def test_a_run_is_remembered_only_if_something_is_known_of_its_image(answers: bool, tmp_path: Path) -> None:
    chat = model(lambda index: verdict("no", "r1" if answers else "r7"))
    graph = build(tmp_path, chat, max_rounds=1, memory=True)
    assert graph.invoke({"prompt": PROMPT}, THREAD)["outcome"] == "rounds"
    assert len(graph.store.search(namespace("default"))) == answers


def test_a_look_that_a_budget_has_no_room_for_is_no_error_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two proposals are drawn at the same time, and the last call goes to the first image of one of them."""
    looks, is_over = threading.Event(), threading.Event()

    class Server(PaintGenerator):
        draws_for_many = True

        def generate(self, requests: Any, **options: Any) -> Any:
            seed = requests[0].seed
            assert seed == 10 or looks.wait(20)
            if seed == 13:
                time.sleep(0.3)  # the look at image 11 is refused meanwhile
                is_over.set()
            assert seed != 12 or is_over.wait(20)
            return super().generate(requests, **options)

    def look(index: int) -> Any:
        looks.set()
        assert is_over.wait(20)
        return verdict("no")

    chat = model(look)
    settings = {"candidates": 4, "proposals": 2, "verify_concurrency": 2, "max_rounds": 1, "budget": {"chat_calls": 3}}
    out = build(tmp_path, chat, Server(), **settings).invoke({"prompt": PROMPT}, THREAD)
    assert (len(chat.calls), out["usage"].chat_calls, out["usage"].images) == (3, 3, 4)
    assert [attempt.verified for attempt in out["attempts"]] == [True, False, False, False]
    assert not [record for record in caplog.records if "callback" in record.getMessage()]
