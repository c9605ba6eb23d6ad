"""What past runs teach about wording."""

from __future__ import annotations

from dataclasses import replace

from remembering import past

from gems.learning.contrasts import MIN_CHANGES, changes_of, is_held_out, lessons_of, phrases_of, separating_phrases
from gems.learning.drafts import _evidence
from gems.memory.trajectory import Trajectory
from gems.printable import printable

THINGS = ["cats", "dogs", "birds", "cars", "chairs", "boats", "lamps", "clocks", "horses", "violins", "drums", "kites"]


def fixed(i: int, better: str = "{}; in a row on the left") -> tuple[str, Trajectory]:
    """A run in which a rewording helped; the added words are the same for every prompt."""
    wish = f"{i} {THINGS[i % 12]} and {THINGS[(i * 5 + 1) % 12]}"
    return f"run{i}", past(wish, wish, better.format(wish))


def test_a_change_is_a_failed_requirement_and_its_result_with_the_next_prompt() -> None:
    [change] = changes_of("r", past("six cats", "six cats", "six cats in two rows"))
    assert (change.kind, change.before, change.after, change.fixed) == (
        "count",
        "six cats",
        "six cats in two rows",
        True,
    )
    [unfixed] = changes_of("r", past("six cats", "six cats", "six cats in two rows", solved=False))
    assert not unfixed.fixed
    assert list(changes_of("r", past("six cats", "six cats", "six cats"))) == [], "another seed is not another wording"
    assert list(changes_of("r", past("six cats", "six cats"))) == []


def test_words_of_the_prompt_itself_are_no_phrases() -> None:
    phrases = phrases_of("exactly six cats in a row; one dog", "six cats and a dog")
    assert {"exactly", "in a row", ";", "one"} - {"a"} <= phrases | {"in a row"}
    assert not {"six", "cats", "dog", "six cats"} & phrases


def test_common_phrases_of_successful_prompts_are_found() -> None:
    lessons = lessons_of([fixed(i) for i in range(MIN_CHANGES + 4)])
    assert [(lesson.kind, len(lesson.fixes), lesson.change_count) for lesson in lessons] == [("count", 12, 12)]
    assert "on the left" in " ".join(lessons[0].phrases)
    assert ";" in lessons[0].phrases
    assert len(lessons[0].runs) == 12


def test_evidence_for_people_is_text_whatever_the_runs_say() -> None:
    hostile = "{} [click](http://evil.example)\n\n# heading <img src=x> \x1b[31m"
    [lesson] = lessons_of([fixed(i, hostile) for i in range(MIN_CHANGES + 4)])
    text = _evidence(replace(lesson, phrases=()))
    assert "evil.example" in text
    assert printable(text) == text
    assert not any(special in text for special in ("[", "<", "\n# heading"))


def test_too_few_runs_teach_nothing() -> None:
    assert lessons_of([fixed(i) for i in range(MIN_CHANGES - 1)]) == []


def test_a_phrase_that_helps_as_often_as_not_does_not_separate() -> None:
    helped = [fixed(i)[1] for i in range(20)]
    prompts = [run.prompt for run in helped]
    neither = [past(w, f"{w} at dusk", w) if i % 2 else past(w, w, f"{w} at dusk") for i, w in enumerate(prompts)]
    assert "at dusk" not in separating_phrases(neither, "count")
    assert separating_phrases(helped, "count")[";"] == 1.0
    assert separating_phrases(helped, "position") == {}, "no run has requirements of that kind"


def test_other_changes_are_another_lesson() -> None:
    rows = [fixed(i) for i in range(10)]
    light = [fixed(i, "{} under bright studio lamps, high contrast") for i in range(10, 22)]
    lessons = lessons_of([*rows, *light])
    assert sorted(len(lesson.fixes) for lesson in lessons) == [10, 12]
    phrases_by_count = {len(lesson.fixes): " ".join(lesson.phrases) for lesson in lessons}
    assert "row" in phrases_by_count[10]
    assert "contrast" in phrases_by_count[12]
    assert "row" not in phrases_by_count[12]


def test_about_half_of_all_prompts_are_held_out_whatever_their_spelling() -> None:
    prompts = [f"{i} {thing}" for i in range(30) for thing in THINGS]
    share = sum(map(is_held_out, prompts)) / len(prompts)
    assert 0.4 < share < 0.6
    assert is_held_out("Three CATS!") == is_held_out("3 cats")


def test_without_common_changes_the_passing_prompts_teach() -> None:
    """This happens with a planner that uses memory: all prompts are worded alike, even those that fail."""
    runs = []
    for i in range(16):
        prompt = f"{i} {THINGS[i % 12]} and {THINGS[(i * 5 + 1) % 12]}"
        places = ("left", "right", "top", "bottom", "middle", "edge")
        worded = [f"{prompt}; in two rows near the {places[(i + k) % 6]}" for k in range(2)]
        runs.append((f"run{i}", past(prompt, *worded)))
    [lesson] = lessons_of(runs)
    assert not lesson.is_contrast
    assert (lesson.kind, len(lesson.fixes)) == ("count", 16)
    assert "in two rows near" in lesson.phrases
    assert all(change.before == "" for change in lesson.fixes)
    never_failed = [(name, past(run.prompt, run.attempts[0].prompt)) for name, run in runs]
    assert lessons_of(never_failed) == [], "prompts that never fail need no skill"
    unseen = runs[0][1].attempts[0].model_copy(update={"verdicts": [], "failed_questions": []})
    with_leftovers = [
        (name, run.model_copy(update={"attempts": [*run.attempts, unseen]})) for name, run in never_failed
    ]
    assert lessons_of([*with_leftovers, runs[0]]) == [], "nor do those whose other images nobody has looked at"
