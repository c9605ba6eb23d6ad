"""The gate of learned skills: what passes, what is retired, and what repeated attempts cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import eval_models
import light_models
import pytest
from langgraph.runtime import RunControl
from remembering import past

from gems.authority import NO_AUTHORITY
from gems.errors import BackendError, InputError
from gems.graph.context import GemsContext
from gems.learning import begun_trials, shelf
from gems.learning.begun_trials import has_begun
from gems.learning.contrasts import Lesson, is_held_out
from gems.learning.learn import plan_learning
from gems.learning.shelf import (
    LearnedSkill,
    add_draft,
    learned_skills,
    lock_shelf,
    move,
    past_trials,
    write_figures,
)
from gems.learning.trials import (
    TrialSettings,
    attempt_of,
    conclude_trial,
    count_held_out,
    held_out_prompts,
    is_due,
    judge_trial,
    level_of,
    run_trial,
)
from gems.memory.trajectory import Trajectory
from gems.runs.record import ModelRecord

POCKET = ModelRecord("pocket", "weights-1")
ABOUT = {"gems-kind": "position", "gems-generator": "pocket", "gems-generator-fingerprint": "weights-1"}


def row(index: int, **answers: bool) -> dict[str, Any]:
    """A result by what was asked for and whether it was met: ``row(0, position=True, count=False)``."""
    requirements = [{"id": kind, "question": f"{kind}?", "kind": kind} for kind in answers]
    attempt = {
        "verdicts": {kind: ["yes" if met else "no", 0.9] for kind, met in answers.items()},
        "passed": sum(answers.values()),
        "total": len(answers),
    }
    return {"index": index, "requirements": requirements, "attempts": [attempt], "best": 0, "skills": ["lamps"]}


def failed(index: int, kind: str) -> dict[str, Any]:
    return {"index": index, "error": "bad", "error_kind": kind}


def promoted(name: str = "lamps", **about: str) -> LearnedSkill:
    draft = add_draft(name, "Use when there are lamps.", "1. Name the lamp.", {**ABOUT, **about}, {})
    gate = {"passed": True, "reason": "it helped", "points": 9.0, "interval": [2.0, 16.0], "wishes": 20}
    gate |= {"won": 4, "lost": 1, "tried": []}
    return move(write_figures(draft, gate), "promoted")


def rows_of(with_skill: list[dict[str, bool]]) -> list[dict[str, Any]]:
    return [row(i, **answers) for i, answers in enumerate(with_skill)]


HELPS_OWN_KIND_HARMS_ANOTHER = (
    rows_of([{"position": i < 12, "count": True} for i in range(60)] + [{"count": i >= 35} for i in range(60)]),
    rows_of([{"position": i < 11, "count": True} for i in range(60)] + [{"count": True} for i in range(60)]),
)
HARMS_ITS_OWN_KIND = (
    rows_of([{"position": False} for _ in range(30)]),
    rows_of([{"position": i < 15} for i in range(30)]),
)
HARMS_ANOTHER_WITH_FEW_OF_ITS_OWN = (
    rows_of([{"position": True}] * 5 + [{"count": False}] * 20),
    rows_of([{"position": False}] * 5 + [{"count": True}] * 20),
)


@pytest.mark.parametrize(
    ("results", "says"),
    [
        (HELPS_OWN_KIND_HARMS_ANOTHER, "it harms requirements of kind count"),
        (HARMS_ITS_OWN_KIND, "it does harm"),
        (HARMS_ANOTHER_WITH_FEW_OF_ITS_OWN, "it harms requirements of kind count"),
    ],
    ids=["another kind", "its own kind", "another kind, few of its own"],
)
def test_a_skill_in_use_that_harms_is_retired(results: Any, says: str) -> None:
    figures = judge_trial("position", *results)
    assert figures["reason"] == says
    skill = conclude_trial(promoted(), figures, ["two lamps"], TrialSettings())
    assert skill.state == "retired"
    assert [(known.name, known.state) for known in learned_skills()] == [("lamps", "retired")]


def test_an_image_that_nobody_has_looked_at_says_nothing_about_a_skill() -> None:
    rows_with, rows_without = (rows_of([{"position": True}] * 3) for _ in range(2))
    rows_with[0]["attempts"] = [{"verdicts": {}, "passed": 0, "total": 0}]
    figures = judge_trial("position", rows_with, rows_without)
    assert (figures["wishes"], figures["failed"], figures["lost"]) == (2, 1, 0)


def test_a_skill_in_use_that_gains_a_little_stays() -> None:
    results = (
        rows_of([{"position": i < 16} for i in range(30)]),
        rows_of([{"position": i < 15} for i in range(30)]),
    )
    figures = judge_trial("position", *results)
    assert not figures["passed"]
    assert conclude_trial(promoted(), figures, ["two lamps"], TrialSettings()).state == "promoted"


def test_a_prompt_that_cannot_be_drawn_with_a_skill_counts_and_a_backend_that_fails_does_not() -> None:
    without = rows_of([{"position": True}] * 30)
    refused = [failed(i, "input") if i < 15 else without[i] for i in range(30)]
    figures = judge_trial("position", refused, without)
    assert (figures["wishes"], figures["lost"], figures["reason"]) == (30, 15, "it does harm")
    assert figures["kinds"]["position"]["points"] == -50.0
    down = [failed(i, "backend") if i < 5 else without[i] for i in range(30)]
    figures = judge_trial("position", down, without)
    assert (figures["wishes"], figures["failed"], figures["lost"]) == (25, 5, 0)


def try_draft(name: str, results: Any) -> LearnedSkill:
    draft = add_draft(name, "Use when there are lamps.", "1. Name the lamp.", ABOUT, {})
    level = level_of(attempt_of(draft), draft.cohort)
    return conclude_trial(draft, judge_trial("position", *results, level=level), ["two lamps"], TrialSettings())


LUCKY = (
    rows_of([{"position": i < 8} for i in range(40)]),
    rows_of([{"position": 7 < i < 9} for i in range(40)]),
)
"""Eight won, one lost: passes at 95%, not at 99.9%."""
NOTHING = (rows_of([{"position": True}] * 30), rows_of([{"position": True}] * 30))


def test_every_attempt_at_an_idea_makes_the_next_one_harder() -> None:
    assert try_draft("lamps", LUCKY).state == "promoted"
    for skill in learned_skills():
        move(skill, "retired")
    for name in ("lamps", "lamps", "shades", "lamps", "shades", "lamps"):
        assert try_draft(name, NOTHING).state == "quarantine"
    lucky = try_draft("lamps", LUCKY)
    assert lucky.state == "quarantine", "what passes at the first attempt does not pass at the eighth"
    assert lucky.figures["reason"] == "its gain cannot be distinguished from zero"
    other_idea = add_draft("counts", "Use when there are counts.", "1. Count.", {**ABOUT, "gems-kind": "count"}, {})
    assert attempt_of(other_idea) == 1


def test_attempts_share_one_error_rate() -> None:
    spent = [(1 - level_of(attempt, 1)) / 2 for attempt in range(1, 2000)]
    assert spent[0] == pytest.approx(0.025)
    assert spent == sorted(spent, reverse=True)
    assert sum(spent) < 0.05
    assert 1 - level_of(3, 4) == pytest.approx((1 - level_of(3, 1)) / 4)


def test_a_refused_version_is_kept_with_its_figures() -> None:
    try_draft("lamps", HARMS_ITS_OWN_KIND)
    try_draft("lamps", NOTHING)
    [skill] = learned_skills("lamps")
    assert skill.version == 2
    assert [(t.version, t.figures["reason"]) for t in past_trials("lamps")] == [
        (1, "it does harm"),
        (2, "its gain cannot be distinguished from zero"),
    ]


# --- the split ------------------------------------------------------------------------------------------------------

SAME_REQUEST = [
    ("six red cars and a dog", "a dog and six red cars"),
    ("six red cars and a dog", "A dog, with 6 cars that are red"),
    ("six red cars and a dog", "one dog together with exactly six red cars, please"),
    ("a cat to the left of two dogs", "two dogs to the right of a cat"),
    ("an image of three blue birds", "draw me three birds, all of them blue"),
    ("a red lamp above a green chair", "there is a green chair below a red lamp"),
]


@pytest.mark.parametrize(("first", "second"), SAME_REQUEST)
def test_the_same_request_in_other_words_is_on_the_same_side(first: str, second: str) -> None:
    assert is_held_out(first) == is_held_out(second)
    for extra in ("clocks", "violins", "kites", "horses", "drums", "boats"):
        assert is_held_out(f"{first}, and {extra}") == is_held_out(f"{extra} and {second}")


def held_out_runs(count: int, start: int = 0) -> list[tuple[str, Trajectory]]:
    prompts = [f"{n} lamps" for n in range(start, start + 10 * count) if is_held_out(f"{n} lamps")][:count]
    return [(prompt, past(prompt, generator="pocket")) for prompt in prompts]


def test_a_request_is_tried_once_in_whatever_words() -> None:
    runs = held_out_runs(5)
    again = [(f"again {name}", past(f"please draw {name}", generator="pocket")) for name, _ in runs]
    assert len(held_out_prompts([*runs, *again], "count", 100, earlier={})) == 5
    assert count_held_out([*runs, *again], "count") == 5


def test_a_skill_is_tried_again_when_as_many_requests_have_come_as_it_was_tried_on() -> None:
    runs = held_out_runs(70)
    skill = promoted(**{"gems-kind": "count"})
    skill = write_figures(skill, {**skill.figures, "known": 50})
    assert not is_due(skill, runs[:69], POCKET, TrialSettings()), "those known at the trial are not new"
    assert is_due(skill, runs, POCKET, TrialSettings())
    assert not is_due(skill, runs, ModelRecord("pocket", "weights-2"), TrialSettings()), "it is for other weights"


# --- a trial that is stopped ----------------------------------------------------------------------------------------


@contextmanager
def no_bar(what: str, total: int) -> Iterator[Any]:
    yield (lambda tally: None, lambda row: None)


def begin_trial(skill: LearnedSkill) -> set[str]:
    """Run a trial whose planner does nothing; returns the folders of all trials of the skill so far."""
    names = [eval_models.GENERATOR, light_models.CHAT]
    context = GemsContext(generator=names[0], mllm=names[1], plan=False)
    context = context.with_authority(NO_AUTHORITY.allowing(names))
    run_trial(skill, ["a red lamp", "a green lamp"], context, TrialSettings(concurrency=1), RunControl(), no_bar)
    return {folder.name for folder in (skill.folder / "gate").iterdir()}


def test_a_trial_continues_with_the_same_skills_only() -> None:
    skill = add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", ABOUT, {})
    first = begin_trial(skill)
    assert begin_trial(skill) == first
    promoted("shades")
    assert len(begin_trial(skill)) == 2, "with another skill in use, it is another trial"


def test_the_prompts_of_a_trial_are_those_that_it_began_with() -> None:
    skill = add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", {**ABOUT, "gems-kind": "count"}, {})
    runs, settings = held_out_runs(70), TrialSettings(prompts=30)
    assert not has_begun(skill)
    trial = begun_trials.begin_trial(skill, runs[:40], settings)
    assert has_begun(skill)
    assert begun_trials.begin_trial(skill, runs, settings) == trial
    assert (len(trial.prompts), trial.known) == (30, 40)
    other = begun_trials.begin_trial(skill, runs, TrialSettings(prompts=20))
    assert (len(other.prompts), other.known) == (20, 70)
    figures = {**judge_trial("count", [], []), "known": other.known}
    skill = conclude_trial(skill, figures, other.prompts, TrialSettings(prompts=20))
    assert not has_begun(skill), "the next trial is another one"
    assert not set(begun_trials.begin_trial(skill, runs, settings).prompts) & set(other.prompts)


def test_a_draft_is_not_replaced_while_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = Lesson("position", ("left",), (), 9)
    monkeypatch.setattr("gems.learning.learn.new_lessons", lambda runs, generator: [lesson])
    context, settings = GemsContext(generator="pocket", mllm="pocket"), TrialSettings()
    generator = plan_learning([], context, settings).generator
    about = {**ABOUT, "gems-generator-fingerprint": generator.fingerprint}
    skill = add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", about, {})
    assert plan_learning([], context, settings).lessons == [lesson]
    begun_trials.begin_trial(skill, [], settings)
    plan = plan_learning([], context, settings)
    assert (plan.lessons, [waiting.name for waiting in plan.waiting]) == ([], ["lamps"])


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1"}', '{"prompts": [1]}', None])
def test_a_damaged_trial_is_told(content: str | None, tmp_path: Path) -> None:
    skill = add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", ABOUT, {})
    if content is None:
        (skill.folder / "gate").symlink_to(tmp_path)
    else:
        (skill.folder / "gate").mkdir()
        (skill.folder / "gate" / "begun.json").write_text(content)
    with pytest.raises(InputError, match="link that leads out" if content is None else "begun.json cannot be read"):
        begun_trials.begin_trial(skill, held_out_runs(3), TrialSettings())
    assert not list(tmp_path.glob("*.json"))


def test_a_trial_ends_when_the_backend_is_down_and_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gems.bulk.batch._MIN_STREAK", 2)
    monkeypatch.setenv("EVAL_FAILS", '{"lamp": "backend"}')
    skill = add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", ABOUT, {})
    with pytest.raises(BackendError, match=r"the trial of lamps cannot go on: .* on fire"):
        begin_trial(skill)
    monkeypatch.delenv("EVAL_FAILS")
    assert len(begin_trial(skill)) == 1


@pytest.mark.parametrize("killed_after", [0, 1])
@pytest.mark.parametrize("passes", [True, False])
def test_a_trial_decides_even_if_it_is_killed_while_it_moves_the_skill(
    passes: bool, killed_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first rename of a folder, or before the second, when no folder has the skill's new name."""
    old = promoted()
    skill = add_draft("lamps", "Use when there are lamps.", "2. Name it twice.", ABOUT, {}) if passes else old
    results = HARMS_ITS_OWN_KIND[::-1] if passes else HARMS_ITS_OWN_KIND
    figures = judge_trial("position", *results)
    rename, renames = Path.rename, 0

    def killed_rename(path: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames > killed_after:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):  # a retired skill needs only one rename
        patch.setattr(Path, "rename", killed_rename)
        conclude_trial(skill, figures, ["two lamps"], TrialSettings())
    with lock_shelf():
        [concluded] = learned_skills()
    assert (concluded.state, concluded.version) == (("promoted", 2) if passes else ("retired", 1))
    assert concluded.figures["points"] == figures["points"]
    assert "moving_to" not in concluded.figures
    assert not list(shelf.promoted_folder().parent.glob("*/.*[0-9a-f]"))
    with lock_shelf():
        assert move(concluded, "quarantine").state == "quarantine"
    with lock_shelf():
        assert [skill.state for skill in learned_skills()] == ["quarantine"]
