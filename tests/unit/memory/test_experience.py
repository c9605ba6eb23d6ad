"""Experiences are distilled, merged, recalled by demands, rated by use and pruned; with FAISS and MiniLM."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from remembering import past

from gems.graph.state import Memory, Verdict
from gems.memory.demands import demands_of
from gems.memory.embedder import init_embedder
from gems.memory.experience import EXPERIENCES, Experience, distil, merge, past_runs, prune, recall, remember
from gems.memory.store import FaissStore
from gems.memory.trajectory import TRAJECTORIES, Trajectory, namespace


@pytest.fixture(params=["faiss", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStore]:
    """A store with an index; any LangGraph store would do."""
    if request.param == "memory":
        yield InMemoryStore(index={"dims": 384, "embed": init_embedder(), "fields": ["prompt"]})
        return
    opened = FaissStore(tmp_path / "store", embedder=init_embedder())
    yield opened
    opened.close()


def experiences(store: BaseStore, user: str = "adam") -> dict[str, Experience]:
    recalled = store.search(namespace(user, EXPERIENCES), limit=100)
    return {item.key: Experience.model_validate(item.value) for item in recalled}


def fill(store: BaseStore, *runs: Trajectory, user: str = "adam") -> None:
    for i, run in enumerate(runs):
        remember(store, user, f"run{i}", run)


# --- two layers -----------------------------------------------------------------------------------------------------


def test_an_experience_has_what_worked_what_failed_and_what_was_hard() -> None:
    taught = distil("run", past("six cats", "six cats", "six cats in a row"))
    assert (taught.solved, taught.best_prompt, taught.lesson) == (True, "six cats in a row", "say it twice")
    assert [(f.prompt, f.missed) for f in taught.avoid] == [("six cats", ("Is it six cats?",))]
    assert taught.hard == ["count"]
    assert taught.reward == 0.5


def test_a_failed_run_is_kept_as_a_failure() -> None:
    taught = distil("run", past("six cats", "six cats", "cats, six", solved=False))
    assert not taught.solved
    assert [f.prompt for f in taught.avoid] == ["six cats", "cats, six"]
    assert taught.reward == 0


def test_a_question_that_got_no_answer_is_no_failure() -> None:
    run = past("six cats", "six cats", solved=False, failed=[], best=0)
    unknown = Verdict(requirement_id="r1", answer="unsure", confidence=0.0, reason="could not be verified")
    [attempt] = run.attempts
    run = run.model_copy(
        update={"attempts": [attempt.model_copy(update={"verdicts": [unknown], "failed_questions": []})]}
    )
    taught = distil("run", run)
    assert (taught.avoid, taught.hard) == ([], [])


def test_spellings_of_a_prompt_share_one_experience_with_the_better_run(store: BaseStore) -> None:
    fill(
        store,
        past("two red cats", "a", "b"),
        past("Two  red cats!", "straight"),
        past("TWO RED CATS", "c", solved=False),
        past("two red cats and a dog"),
        past("two red cats", "other", generator="another"),
    )
    recalled = experiences(store)
    merged = next(e for e in recalled.values() if e.count == 3)
    assert len(recalled) == 3
    assert (merged.prompt, merged.best_prompt, merged.run) == ("two red cats", "straight", "run1")
    assert (merged.solved_count, merged.runs) == (2, ["run0", "run1", "run2"])
    assert merged.lesson == "say it twice"
    assert {f.prompt for f in merged.avoid} == {"a", "c"}
    assert merged.mean_reward == pytest.approx(0.5)


@pytest.mark.parametrize(
    "prompts",
    [
        ("a cat left of a dog", "a dog left of a cat"),
        ("🐱 on a mat", "🐶 on a mat"),
        ("a logo of C++", "a logo of C#"),
        ('a sign that says "A"', 'a sign that says "THE"'),
        ("लाल", "लीला"),
        ("at -5 degrees", "at 5 degrees"),
    ],
)
def test_different_prompts_are_not_merged(store: BaseStore, prompts: tuple[str, str]) -> None:
    fill(store, *map(past, prompts))
    assert len(experiences(store)) == 2


def test_remembering_twice_changes_nothing(store: BaseStore) -> None:
    fill(store, past("two cats"), past("three cats"))
    key = next(iter(experiences(store)))
    again = past("four cats", recalled=[key])
    remember(store, "adam", "again", again)
    before = experiences(store)
    remember(store, "adam", "again", again)
    assert experiences(store) == before
    assert len(store.search(namespace("adam"), limit=10)) == 3


def test_runs_are_stored_whole_and_per_user(store: BaseStore) -> None:
    run = past("two cats", "a", "b")
    remember(store, "adam", "run", run)
    item = store.get(namespace("adam"), "run")
    assert item is not None
    assert Trajectory.model_validate(item.value) == run
    assert recall(store, "eve", "two cats", 3) == []


def test_past_runs_are_per_user_and_other_records_are_skipped(store: BaseStore) -> None:
    runs = [past("two cats"), past("two cats", "a", "b"), past("a violin")]
    fill(store, *runs)
    fill(store, past("three cats"), user="eve")
    store.put(namespace("adam"), "torn", {"prompt": 3}, index=False)
    assert dict(past_runs(store, "adam")) == {"run0": runs[0], "run1": runs[1], "run2": runs[2]}


def test_an_invalid_experience_is_ignored(store: BaseStore) -> None:
    fill(store, past("two cats"))
    store.put(namespace("adam", EXPERIENCES), "odd", {"prompt": "two cats", "solved": "perhaps"}, index=["prompt"])
    assert [m.prompt for m in recall(store, "adam", "two cats", 3)] == ["two cats"]


# --- recall ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "features"),
    [
        ("Six red cats", {"count": 1, "count 6": 1}),
        ("a dozen eggs on top of 2 boxes", {"count": 2, "count 12": 1, "count 2": 1, "relation": 1, "relation on": 1}),
        (
            "a cat to the left of a dog, behind the house",
            {"relation": 2, "relation left": 1, "relation behind": 1},
        ),
        ('a sign that says "OPEN"', {"text": 1}),
        ("zwei Katzen", {}),
        ("", {}),
    ],
)
def test_demands_are_read_from_words(wish: str, features: dict[str, int]) -> None:
    assert dict(demands_of(wish).features) == features


def test_similar_demands_are_close() -> None:
    six = demands_of("six cats")
    assert six.closeness(demands_of("six violins")) == 1
    assert six.closeness(demands_of("two cats")) < six.closeness(demands_of("six violins and two cats"))
    assert demands_of("a cat").closeness(demands_of("a dog")) == 1
    assert demands_of("a cat").closeness(six) == 0


def test_experiences_with_the_same_demands_come_first(store: BaseStore) -> None:
    fill(store, past("a cat"), past("two cats"), past("seven dogs"))
    assert recall(store, "adam", "seven cats", 1)[0].prompt == "seven dogs"


def test_recalled_experiences_differ(store: BaseStore) -> None:
    fill(
        store, past("three red cats on a sofa"), past("three red cats on the big sofa"), past("three blue cats asleep")
    )
    prompts = [m.prompt for m in recall(store, "adam", "three red cats on a sofa", 2)]
    assert prompts == ["three red cats on a sofa", "three blue cats asleep"]


def test_experiences_of_other_image_models_take_only_free_places(store: BaseStore) -> None:
    others = [past(f"three red cats{end}", generator="other") for end in ("", " on a sofa", " at home", " asleep")]
    fill(store, *others, past("three red dogs", generator="mine"))
    assert recall(store, "adam", "three red cats", 1)[0].prompt == "three red cats"
    for limit in (1, 2, 3):
        recalled = recall(store, "adam", "three red cats", limit, generator="mine")
        assert recalled[0].prompt == "three red dogs"
        assert len(recalled) == limit
    assert recalled[1].prompt == "three red cats"
    assert recall(store, "adam", "three red cats", 1, generator="new")[0].prompt == "three red cats"


def test_many_experiences_of_other_models_hide_none_of_the_current_one(store: BaseStore) -> None:
    many = [past(f"three red cats number {i}", generator="other") for i in range(40)]
    fill(store, *many, past("four blue cats", generator="mine"))
    assert recall(store, "adam", "three red cats", 3, generator="mine")[0].prompt == "four blue cats"


def test_experiences_without_advice_are_left_out(store: BaseStore) -> None:
    fill(store, past("a violin"), past("three red cats"))
    assert [m.prompt for m in recall(store, "adam", "two red cats", 5)] == ["three red cats"]
    assert recall(store, "adam", "two red cats", 0) == []


def test_a_store_without_an_index_recalls_nothing() -> None:
    bare = InMemoryStore()
    fill(bare, past("three red cats"))
    assert recall(bare, "adam", "three red cats", 3) == []


# --- usefulness -----------------------------------------------------------------------------------------------------


def find(memories: list[Memory], prompt: str) -> Memory:
    return next(m for m in memories if m.prompt == prompt)


@pytest.mark.parametrize(("images", "sign"), [(1, 1), (5, -1)])
def test_helpful_experiences_rise_and_useless_ones_sink(store: BaseStore, images: int, sign: int) -> None:
    # Neighbours took two images each; runs that recalled "three red cats" take this many.
    fill(store, past("three red cats"), *(past(f"three red {what}", "x", "y") for what in ("dogs", "cows", "birds")))
    before = find(recall(store, "adam", "three red foxes", 9), "three red cats")
    for i in range(6):
        run = past(f"three red animals {i}", *map(str, range(images)), recalled=[before.key])
        remember(store, "adam", f"later{i}", run)
    after = find(recall(store, "adam", "three red foxes", 9), "three red cats")
    assert sign * after.usefulness > 0.1
    assert sign * (after.relevance - before.relevance) > 0
    assert len(experiences(store)[before.key].uses) == 6


def test_few_uses_count_little() -> None:
    taught = distil("run", past("two cats"))
    one_use, forty_uses = ([(f"run{i}", 0.5) for i in range(n)] for n in (1, 40))
    assert taught.usefulness == 0
    assert taught.model_copy(update={"uses": one_use}).usefulness == pytest.approx(0.1)
    assert taught.model_copy(update={"uses": forty_uses}).usefulness > 0.4


def test_a_run_without_neighbours_gives_no_credit(store: BaseStore) -> None:
    fill(store, past("three red cats"))
    [recalled] = recall(store, "adam", "three red dogs", 3)
    remember(store, "adam", "later", past("three red dogs", recalled=[recalled.key, "forgotten"]))
    assert experiences(store)[recalled.key].uses == []


def test_runs_of_other_models_are_not_compared(store: BaseStore) -> None:
    fill(store, past("three red cats"), *(past(f"three red {what}", generator="better") for what in ("dogs", "cows")))
    recalled = find(recall(store, "adam", "three red foxes", 9), "three red cats")
    remember(store, "adam", "later", past("three red foxes", "a", "b", recalled=[recalled.key]))
    assert experiences(store)[recalled.key].uses == []


def test_candidates_do_not_count_as_rounds() -> None:
    assert past("two cats", images=4).reward == 1


def test_the_lists_of_runs_and_uses_are_bounded() -> None:
    taught = distil("run", past("two cats"))
    for i in range(200):
        taught = merge(taught, distil(f"run{i}", past("two cats")))
    assert len(taught.runs) == 50
    assert taught.runs[-1] == "run199"
    assert taught.count == 201


# --- limits ---------------------------------------------------------------------------------------------------------


def test_the_least_useful_is_pruned_first_then_the_oldest(store: BaseStore) -> None:
    fill(store, *(past(f"{n} cats") for n in ("two", "three", "four", "five")))
    keys = {e.prompt: key for key, e in experiences(store).items()}
    poor = experiences(store)[keys["four cats"]].model_copy(update={"uses": [("x", -0.5)]})
    good = experiences(store)[keys["two cats"]].model_copy(update={"uses": [("x", 0.5)]})
    for experience in (poor, good):
        value = experience.model_dump(mode="json")
        store.put(namespace("adam", EXPERIENCES), keys[experience.prompt], value, index=["prompt"])
    assert prune(store, "adam", limit=2, days=None) == 4
    assert {e.prompt for e in experiences(store).values()} == {"two cats", "five cats"}
    assert [item.key for item in store.search(namespace("adam"), limit=9)] == ["run2", "run3"]
    assert prune(store, "adam", limit=2, days=None) == 0


def test_old_memories_are_pruned(tmp_path: Path) -> None:
    with_dates = FaissStore(tmp_path, embedder=init_embedder())
    fill(with_dates, past("two cats"), past("three cats"))
    old = next(key for key, e in experiences(with_dates).items() if e.prompt == "two cats")
    long_ago = datetime.now(UTC) - timedelta(days=40)
    with_dates.backdate([(namespace("adam", EXPERIENCES), old, long_ago), (namespace("adam"), "run0", long_ago)])
    assert prune(with_dates, "adam", limit=None, days=41) == 0
    assert prune(with_dates, "adam", limit=None, days=30) == 2
    assert [m.prompt for m in recall(with_dates, "adam", "two cats", 3)] == ["three cats"]
    assert with_dates.get((*TRAJECTORIES, "adam"), "run0") is None
    with_dates.close()


def test_only_the_users_own_memory_is_pruned(store: BaseStore) -> None:
    fill(store, past("two cats"), past("three cats"))
    fill(store, past("two cats"), past("three cats"), user="eve")
    assert prune(store, "adam", limit=1, days=None) == 2
    assert len(experiences(store, "eve")) == 2
