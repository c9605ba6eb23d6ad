"""``gems skills``: see which skills there are, and learn new ones from past runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gems.cli.arguments import AsJson, Quiet, with_settings
from gems.cli.console import INTERRUPTED, batch_bar, err, guarded, out, print_json, stoppable
from gems.printable import printable

if TYPE_CHECKING:
    from gems.graph.context import GemsContext
    from gems.learning.contrasts import Lesson
    from gems.learning.learn import LearningPlan, Step
    from gems.learning.shelf import LearnedSkill
    from gems.learning.trials import TrialSettings
    from gems.skills.format import Skill

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Advice on prompt writing that the planner reads on demand: see it, check it, learn it.

A skill is a folder with a SKILL.md (agentskills.io). Skills come with gems, are learned, or are your own, in
~/.config/gems/skills, and in ./skills or --skills-dir; of two with the same name, the later in this order is used.

[bold]gems skills learn[/bold] drafts skills from your past runs, tries each on prompts that it was not drafted from,
and puts into use only those that help.""",
)

Name = Annotated[str, typer.Argument(help="A skill's name, as in gems skills list.")]


# --- looking at skills ----------------------------------------------------------------------------------------------


@app.command("list")
@guarded
@with_settings("skills_dir", "no_builtin_skills")
def list_(*, context: GemsContext, as_json: AsJson = False) -> None:
    """List all skills: those that the planner is offered, and the learned ones that it is not."""
    from gems.learning.shelf import learned_skills
    from gems.skills.loader import load_skills

    library, learned = load_skills(context.skills_dir, builtin=context.builtin_skills), learned_skills()
    if as_json:
        print_json(
            {
                "skills": [_row(skill) for skill in library.skills.values()],
                "learned": [_learned_row(skill) for skill in learned],
                "problems": library.problems,
                "notices": library.notices,
            }
        )
        return
    table = Table("name", "from", "when to use it")
    for skill in library.skills.values():
        table.add_row(escape(skill.name), escape(_origin(skill)), escape(skill.description))
    for unused in learned:
        if unused.state != "promoted":
            reason = escape(unused.figures.get("reason") or "it has not been tried yet")
            table.add_row(f"[dim]{escape(unused.name)}[/]", unused.state, f"[dim]not offered: {reason}[/]")
    out.print(table)
    for problem in library.problems:
        err.print(f"[red]✗[/] {escape(problem)}", highlight=False)
    for notice in library.notices:
        err.print(f"[yellow]![/] {escape(notice)}", highlight=False)


@app.command()
@guarded
@with_settings("skills_dir")
def show(name: Name, *, context: GemsContext, as_json: AsJson = False) -> None:
    """Show one skill: what the planner reads, its file, and for a learned skill the results of its trial."""
    from gems.errors import InputError
    from gems.learning.shelf import learned_skills
    from gems.skills.loader import load_skills

    versions = [learned for learned in learned_skills() if learned.name == name]
    skill = load_skills(context.skills_dir).skills.get(name) or (versions[0].skill if versions else None)
    if skill is None:
        raise InputError(f"no skill is called {name!r}; gems skills list shows them")
    if as_json:
        learned_rows = [_learned_row(learned) for learned in versions]
        print_json({**_row(skill), "body": skill.body, "learned": learned_rows, "history": _history(name)})
        return
    facts = Table(show_header=False, box=None)
    for label, value in {
        "name": skill.name,
        "from": _origin(skill),
        "file": str(skill.path),
        "when": skill.description,
        "checks": "\n".join(f"{check.kind}: {check.question}" for check in skill.checks),
        "references": ", ".join(skill.references),
    }.items():
        if value:
            facts.add_row(f"[bold]{label}[/]", escape(value))
    for learned in versions:
        facts.add_row("[bold]learned[/]", f"version {learned.version}, {learned.state}")
        facts.add_row("[bold]evidence[/]", escape(str(learned.folder / "references" / "evidence.md")))
        facts.add_row("[bold]trial[/]", escape(_trial_in_words(learned.figures)))
    for trial in _history(name) if versions else ():
        facts.add_row(f"[bold]version {trial['version']}[/]", escape(_trial_in_words(trial["gate"])))
    out.print(facts)
    out.print()
    out.print(escape(skill.body), highlight=False)


@app.command()
@guarded
def validate(
    folders: Annotated[list[Path], typer.Argument(help="Folders of skills, or folders that contain such folders.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Check skills without using them. Exit code 1 if one cannot be used; oddities are only reported."""
    from gems.errors import InputError
    from gems.skills.loader import skill_folders

    rows: list[dict[str, Any]] = []
    for folder in folders:
        paths = skill_folders(folder)
        if not paths:
            raise InputError(f"{folder} is not a skill's folder and contains none: there is no SKILL.md")
        rows += [_validate(path) for path in paths]
    if as_json:
        print_json(rows)
    else:
        _print_validation(rows)
    raise typer.Exit(0 if all(row["usable"] for row in rows) else 1)


def _validate(folder: Path) -> dict[str, Any]:
    from gems.skills.format import UnusableError, read_skill

    try:
        skill, oddities = read_skill(folder)
    except UnusableError as error:
        return {"folder": str(folder), "usable": False, "reason": str(error), "odd": []}
    return {"folder": str(folder), "usable": True, "name": skill.name, "odd": oddities}


def _print_validation(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        mark = "[green]✓[/]" if row["usable"] else "[red]✗[/]"
        reason = f": {row['reason']}" if "reason" in row else ""
        out.print(f"{mark} {escape(row['folder'] + reason)}")
        for oddity in row["odd"]:
            out.print(f"  [yellow]![/] {escape(oddity)}", highlight=False)


# --- learning -------------------------------------------------------------------------------------------------------


@app.command()
@guarded
@with_settings(
    "mllm",
    "generator",
    "chat_option",
    "generator_option",
    "user",
    "memory",
    "embedder",
    "skills_dir",
    "no_builtin_skills",
)
def learn(
    *,
    prompts: Annotated[
        int, typer.Option(min=20, max=5000, help="Maximum held-out prompts of its kind that a skill is tried on.")
    ] = 100,
    images: Annotated[int, typer.Option(min=1, max=50, help="Maximum images per prompt in the trial.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be tried and what it may cost.")] = False,
    no_promote: Annotated[
        bool, typer.Option("--no-promote", help="Leave what passes in quarantine, for gems skills promote.")
    ] = False,
    context: GemsContext,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the trial's images.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Prompts in flight.")] = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draft skills from past runs, try them, and put those that help into use.

    1. Requirements in your memory that one draft failed and the next passed are gathered by kind; if those changes have
       nothing in common, drafts that passed.
    2. The chat model words a skill for each kind that has enough of them. The skill goes into quarantine.
    3. The trial: prompts that ask for nothing that a skill was drafted from are drawn with the skill and without, from
       the same seeds. A skill is promoted if it makes more of them right, by an interval that excludes zero, and harms
       no kind of requirement. The more attempts at the same kind there were, the clearer it has to be.
    4. Promoted skills are tried again when as many new prompts have come; a skill that does harm, or no longer helps,
       is retired.

    Interrupt it at any moment: the same command resumes. What is learned is for this image model only. It is offered
    to everybody who uses this $GEMS_HOME, and quotes prompts that it was learned from.
    """
    from gems.learning import shelf
    from gems.learning.learn import learn as learn_skills
    from gems.learning.learn import plan_learning, remembered_runs
    from gems.learning.trials import TrialSettings

    settings = TrialSettings(prompts=prompts, images=images, seed=seed, concurrency=concurrency)
    runs = remembered_runs(context)
    with shelf.lock_shelf(), stoppable() as control:
        plan = plan_learning(runs, context, settings)
        if not quiet:
            _announce(plan, settings)
        if dry_run:
            if as_json:
                print_json({"runs": len(runs), "lessons": [_lesson_row(lesson) for lesson in plan.lessons]})
            return
        skills = learn_skills(
            plan,
            context,
            settings,
            control=control,
            bar=lambda what, total: batch_bar(total, what=what, quiet=quiet),
            on_step=lambda step: _print_step(step, quiet=quiet),
            promote=not no_promote,
        )
    if skills is None:
        err.print("stopped; run the same command again to resume", highlight=False)
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print_json({"runs": len(runs), "learned": [_learned_row(skill) for skill in skills]})
    elif not skills:
        out.print("nothing new to learn", highlight=False)
    else:
        table = Table("skill", "version", "now", "trial")
        for skill in skills:
            table.add_row(escape(skill.name), str(skill.version), skill.state, escape(_trial_in_words(skill.figures)))
        out.print(table)


def _announce(plan: LearningPlan, settings: TrialSettings) -> None:
    """What is going to be tried, and what it may cost at most."""
    err.print(f"{len(plan.runs)} runs are remembered", highlight=False)
    for lesson in plan.lessons:
        evidence = "requirements that another draft fixed" if lesson.is_contrast else "drafts that passed"
        phrases = escape(", ".join(map(repr, lesson.phrases))) or "no phrase in common"
        err.print(f"to be drafted: {lesson.kind}, from {len(lesson.fixes)} {evidence} ({phrases})", highlight=False)
    for skill in plan.waiting:
        err.print(f"to be tried: {escape(skill.name)}", highlight=False)
    for skill in plan.to_repeat:
        err.print(f"to be tried again: {escape(skill.name)}", highlight=False)
    if images := plan.most_images(settings):
        err.print(f"that costs at most {images} images, and a planner and a verifier call or two for each")


def _print_step(step: Step, *, quiet: bool) -> None:
    from gems.learning.learn import Drafted, NotDrafted, Tried

    if isinstance(step, NotDrafted):
        err.print(f"{step.lesson.kind}: not drafted; {escape(step.reason)}", highlight=False)
    elif isinstance(step, Tried) and step.skill.state == "retired":
        trial = escape(_trial_in_words(step.skill.figures))
        err.print(f"{step.skill.name} is retired, and not offered any more; {trial}", highlight=False)
    elif quiet:
        return
    elif isinstance(step, Drafted):
        err.print(f"drafted {escape(step.skill.name)}, version {step.skill.version}", highlight=False)
    else:
        trial = escape(_trial_in_words(step.skill.figures))
        err.print(f"{escape(step.skill.name)}: {step.skill.state}; {trial}", highlight=False)


# --- learned skills -------------------------------------------------------------------------------------------------


@app.command()
@guarded
def promote(name: Name) -> None:
    """Put a learned skill that has passed its trial into use: one that was left in quarantine, or retired."""
    from gems.errors import InputError
    from gems.learning import shelf

    with shelf.lock_shelf():
        skill = next((skill for skill in shelf.learned_skills(name) if skill.state != "promoted"), None)
        if skill is None:
            raise InputError(f"{name} is promoted already")
        if not skill.figures.get("passed"):
            raise InputError(
                f"{name} has not passed its trial ({_trial_in_words(skill.figures)}); gems skills learn tries it. To "
                f"use it anyway, copy {skill.folder} to a folder of your own, such as ~/.config/gems/skills"
            )
        shelf.move(skill, "promoted")
    out.print(f"{escape(name)} is offered to the planner from the next run on", highlight=False)


@app.command()
@guarded
def retire(name: Name) -> None:
    """Take a learned skill out of use. It is kept with its figures, and gems skills promote brings it back."""
    from gems.errors import InputError
    from gems.learning import shelf

    with shelf.lock_shelf():
        skill = next((skill for skill in shelf.learned_skills(name) if skill.state == "promoted"), None)
        if skill is None:
            raise InputError(f"{name} is not in use, so it cannot be retired")
        shelf.move(skill, "retired")
    out.print(f"{escape(name)} is not offered any more", highlight=False)


@app.command()
@guarded
def diff(
    name: Name,
    old: Annotated[int | None, typer.Argument(help="A version.", show_default="the one before")] = None,
    new: Annotated[int | None, typer.Argument(help="A later version.", show_default="the last")] = None,
) -> None:
    """Show what changed between two versions of a learned skill."""
    from gems.learning.shelf import difference

    sys.stdout.write(printable(difference(name, old, new)))


def _trial_in_words(figures: dict[str, Any]) -> str:
    """The result of a learned skill's trial in one line."""
    if not figures:
        return "it has not been tried yet"
    low, high = figures["interval"]
    attempt = f", attempt {figures['attempt']} at its idea" if figures.get("attempt", 1) > 1 else ""
    return (
        f"{figures['reason']}: {figures['points']:+.1f} points ({low:+.1f} to {high:+.1f}) on {figures['wishes']} "
        f"prompts, {figures['won']} won, {figures['lost']} lost{attempt}"
    )


def _origin(skill: Skill) -> str:
    """Where a skill comes from; for a learned one, also the image model that it is offered for."""
    generator = skill.metadata.get("gems-generator") if skill.origin == "learned" else None
    return f"{skill.origin}, for {generator} only" if generator else skill.origin


def _history(name: str) -> list[dict[str, Any]]:
    """All trials of a learned skill, also of versions that another has replaced."""
    from gems.learning.shelf import past_trials

    return [{"version": trial.version, "gate": trial.figures} for trial in past_trials(name)]


def _row(skill: Skill) -> dict[str, Any]:
    return {
        "name": skill.name,
        "origin": skill.origin,
        "description": skill.description,
        "path": str(skill.path),
        "checks": [f"{check.kind}: {check.question}" for check in skill.checks],
        "references": skill.references,
    }


def _learned_row(skill: LearnedSkill) -> dict[str, Any]:
    return {
        "name": skill.name,
        "version": skill.version,
        "state": skill.state,
        "kind": skill.kind,
        "generator": skill.generator,
        "path": str(skill.skill.path),
        "gate": skill.figures,
    }


def _lesson_row(lesson: Lesson) -> dict[str, Any]:
    return {
        "kind": lesson.kind,
        "phrases": lesson.phrases,
        "fixes": len(lesson.fixes),
        "tried": lesson.change_count,
    }
