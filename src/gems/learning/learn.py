"""Learning from past runs: which skills are to be drafted and tried, and doing it. ``gems skills learn`` shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from langgraph.runtime import RunControl

from gems.bulk.results import BatchRow
from gems.errors import InputError, MalformedAnswerError
from gems.graph.context import GemsContext
from gems.learning.begun_trials import begin_trial, has_begun
from gems.learning.contrasts import Lesson
from gems.learning.drafts import draft_skill, new_lessons
from gems.learning.shelf import LearnedSkill, learned_skills
from gems.learning.trials import (
    ProgressBar,
    Runs,
    TrialSettings,
    attempt_of,
    awaits_trial,
    conclude_trial,
    is_due,
    judge_trial,
    level_of,
    run_trial,
)
from gems.memory.embedder import init_embedder
from gems.memory.experience import past_runs
from gems.memory.opening import memory_location, open_store
from gems.models.registry import init_image_generator, init_mllm
from gems.nodes.resources import check_options
from gems.runs.record import ModelRecord

__all__ = ["Drafted", "LearningPlan", "NotDrafted", "Step", "Tried", "learn", "plan_learning", "remembered_runs"]


@dataclass(frozen=True, slots=True)
class LearningPlan:
    """The lessons to draft and the skills to try."""

    runs: Runs
    lessons: list[Lesson]
    """Lessons to be drafted."""
    waiting: list[LearnedSkill]
    """Drafts that have not been tried yet."""
    to_repeat: list[LearnedSkill]
    """Promoted skills that are to be tried again."""
    generator: ModelRecord
    """The image model that the skills are for."""

    def most_images(self, settings: TrialSettings) -> int:
        """Maximum number of images for the trials, with half as many prompts of other kinds as of a skill's own."""
        trials = len(self.lessons) + len(self.waiting) + len(self.to_repeat)
        return trials * 2 * (settings.prompts + settings.prompts // 2) * settings.images


@dataclass(frozen=True, slots=True)
class Drafted:
    """The chat model has worded a lesson."""

    skill: LearnedSkill


@dataclass(frozen=True, slots=True)
class NotDrafted:
    """The chat model could not word a lesson."""

    lesson: Lesson
    reason: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial is over; its skill has been promoted, retired or left as it was."""

    skill: LearnedSkill


Step: TypeAlias = Drafted | NotDrafted | Tried


def remembered_runs(context: GemsContext) -> Runs:
    """The runs that a user's memory holds.

    Raises:
        InputError: There are none, or the memory cannot be used.
        BackendError: The database cannot be reached.
    """
    store = open_store(memory_location(context), init_embedder(context.embedder))
    runs = list(past_runs(store, context.user))
    if not runs:
        raise InputError("nothing to learn from: no run is remembered; make some first, with the memory on")
    return runs


def plan_learning(runs: Runs, context: GemsContext, settings: TrialSettings) -> LearningPlan:
    """What these runs teach that no skill was drafted from yet, and which skills are to be tried.

    A draft whose trial has begun is not replaced before the trial is over.
    """
    model = init_image_generator(context.generator, context.generator_options, context.authority)
    generator = ModelRecord(model.name, model.fingerprint)
    skills = learned_skills()
    waiting = [skill for skill in skills if awaits_trial(skill, generator)]
    in_trial = {skill.kind for skill in waiting if has_begun(skill)}
    lessons = [lesson for lesson in new_lessons(runs, generator) if lesson.kind not in in_trial]
    in_use = [skill for skill in skills if skill.state == "promoted" and skill.suits(generator)]
    to_repeat = [skill for skill in in_use if has_begun(skill) or is_due(skill, runs, generator, settings)]
    return LearningPlan(runs, lessons, waiting, to_repeat, generator)


def learn(
    plan: LearningPlan,
    context: GemsContext,
    settings: TrialSettings,
    *,
    control: RunControl,
    bar: ProgressBar,
    on_step: Callable[[Step], None],
    promote: bool = True,
) -> list[LearnedSkill] | None:
    """Draft the lessons and try the skills. Hold ``lock_shelf`` from planning until this returns.

    Args:
        plan: The lessons to draft and the skills to try.
        context: The models, and the folder of the user's own skills.
        settings: Settings of the trials.
        control: Asks for a stop.
        bar: Shows the progress of a trial.
        on_step: Called after each draft and each trial.
        promote: Put skills that pass into use, rather than leaving them in quarantine.

    Returns:
        The skills that were tried; None if learning was stopped; the same call resumes it.

    Raises:
        InputError: An option has no effect with the models.
        BackendError: A model, the disk or the database failed.
    """
    check_options(context)
    drafts = _draft(plan, context, on_step)
    redrafted = {draft.name for draft in drafts}
    skills = [*(skill for skill in plan.waiting if skill.name not in redrafted), *drafts, *plan.to_repeat]
    results: list[LearnedSkill] = []
    for skill in skills:
        trial = begin_trial(skill, plan.runs, settings)
        rows = run_trial(skill, trial.prompts, context, settings, control, bar)
        if rows is None:
            return None
        figures = {**_judge(skill, rows), "known": trial.known}
        results.append(conclude_trial(skill, figures, trial.prompts, settings, promote=promote))
        on_step(Tried(results[-1]))
    return results


def _judge(skill: LearnedSkill, rows: tuple[list[BatchRow], list[BatchRow]]) -> dict[str, Any]:
    """The figures of a trial. A draft has to be the clearer, the more attempts at its idea there were."""
    if skill.state == "promoted":
        return judge_trial(skill.kind, *rows)
    attempt = attempt_of(skill)
    return {"attempt": attempt, **judge_trial(skill.kind, *rows, level=level_of(attempt, skill.cohort))}


def _draft(plan: LearningPlan, context: GemsContext, on_step: Callable[[Step], None]) -> list[LearnedSkill]:
    """Drafts of the lessons that the chat model can word."""
    cohort, drafts = len(plan.lessons) + len(plan.waiting), list[LearnedSkill]()
    for lesson in plan.lessons:
        try:
            model = init_mllm(context.mllm, context.chat_options, context.authority)
            drafts.append(draft_skill(lesson, model, plan.generator, context, cohort=cohort))
        except MalformedAnswerError as error:
            on_step(NotDrafted(lesson, str(error)))
        else:
            on_step(Drafted(drafts[-1]))
    return drafts
