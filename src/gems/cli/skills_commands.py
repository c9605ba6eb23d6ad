"""``gems skills``: see what skills there are, and have new ones learned from past runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gems.cli.arguments import (
    AsJson,
    ChatOption,
    Embedder,
    Generator,
    GeneratorOption,
    Memory,
    Mllm,
    NoBuiltinSkills,
    Quiet,
    SkillsDir,
    User,
    make_context,
    memory_given,
    skills_path,
)
from gems.cli.console import INTERRUPTED, batch_bar, err, guarded, out, print_json, stoppable

if TYPE_CHECKING:
    from gems.graph.context import GemsContext
    from gems.learning.contrasts import Lesson
    from gems.learning.shelf import Learned
    from gems.learning.trials import GateSettings
    from gems.skills.format import Skill

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Advice on prompt writing that the planner reads on demand: see it, check it, have it learned.

A skill is a folder with a SKILL.md (agentskills.io). They are looked for among those that come with gems, those that
were learned, ~/.config/gems/skills, and ./skills or --skills-dir; of two with one name the later wins.

[bold]gems skills learn[/bold] drafts skills from your past runs, tries each on prompts that it was not drafted from,
and puts into use only those that help.""",
)

Name = Annotated[str, typer.Argument(help="A skill's name, as in gems skills list.")]


@app.command("list")
@guarded
def list_(*, skills_dir: SkillsDir = None, no_builtin_skills: NoBuiltinSkills = False, as_json: AsJson = False) -> None:
    """All skills: those that the planner is offered, and the learned ones that it is not."""
    from gems.learning.shelf import learned
    from gems.skills.loader import load_skills

    library = load_skills(skills_path(skills_dir), builtin=not no_builtin_skills)
    shelved = [one for one in learned() if one.state != "promoted"]
    if as_json:
        print_json(
            {
                "skills": [_row(skill) for skill in library.skills.values()],
                "learned": [_learned_row(one) for one in learned()],
                "problems": library.problems,
                "notices": library.notices,
            }
        )
        return
    table = Table("name", "from", "when to use it")
    for skill in library.skills.values():
        table.add_row(skill.name, skill.origin, escape(skill.description))
    for one in shelved:
        told = one.gate.get("reason") or "it has not been through the gate"
        table.add_row(f"[dim]{one.skill.name}[/]", one.state, f"[dim]not offered: {escape(told)}[/]")
    out.print(table)
    _tell(library.problems, library.notices)


@app.command()
@guarded
def show(name: Name, *, skills_dir: SkillsDir = None, as_json: AsJson = False) -> None:
    """One skill: what the planner reads, where it lies, and for a learned one how it fared at the trials."""
    from gems.errors import InputError
    from gems.learning.shelf import learned
    from gems.skills.loader import load_skills

    found = [one for one in learned() if one.skill.name == name]
    skill = load_skills(skills_path(skills_dir)).skills.get(name) or (found[0].skill if found else None)
    if skill is None:
        raise InputError(f"no skill is called {name!r}; gems skills list shows them")
    if as_json:
        print_json({**_row(skill), "body": skill.body, "learned": [_learned_row(one) for one in found]})
        return
    about = Table(show_header=False, box=None)
    for label, value in {
        "name": skill.name,
        "from": skill.origin,
        "file": str(skill.path),
        "when": skill.description,
        "checks": "\n".join(f"{check.kind}: {check.question}" for check in skill.checks),
        "beside": ", ".join(skill.references),
    }.items():
        if value:
            about.add_row(f"[bold]{label}[/]", escape(value))
    for one in found:
        about.add_row("[bold]learned[/]", f"version {one.version}, {one.state}")
        about.add_row("[bold]evidence[/]", escape(str(one.folder / "references" / "evidence.md")))
        about.add_row("[bold]gate[/]", escape(_fared(one)))
    out.print(about)
    out.print()
    out.print(escape(skill.body), highlight=False)


@app.command()
@guarded
def validate(
    folders: Annotated[list[Path], typer.Argument(help="Skills' folders, or folders of them.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Check skills without using them. Exit code 1 if one cannot be used; what is odd about one is told, no more."""
    from gems.errors import InputError
    from gems.skills.format import UnusableError, read_skill
    from gems.skills.loader import skill_folders

    rows: list[dict[str, Any]] = []
    for folder in folders:
        inside = skill_folders(folder)
        if not inside:
            raise InputError(f"{folder} is no skill's folder and holds none: there is no SKILL.md")
        for path in inside:
            try:
                skill, odd = read_skill(path)
                rows.append({"folder": str(path), "usable": True, "name": skill.name, "odd": odd})
            except UnusableError as error:
                rows.append({"folder": str(path), "usable": False, "reason": str(error), "odd": []})
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            mark = "[green]✓[/]" if row["usable"] else "[red]✗[/]"
            out.print(f"{mark} {escape(row['folder'])}{escape(': ' + row['reason']) if 'reason' in row else ''}")
            for what in row["odd"]:
                out.print(f"  [yellow]![/] {escape(what)}", highlight=False)
    raise typer.Exit(0 if all(row["usable"] for row in rows) else 1)


@app.command()
@guarded
def learn(
    *,
    prompts: Annotated[
        int, typer.Option(min=20, max=5000, help="Held-out wishes of its kind that a skill is tried on, at most.")
    ] = 100,
    images: Annotated[int, typer.Option(min=1, max=50, help="Images a wish may cost in the trial.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be tried and what it may cost.")] = False,
    no_promote: Annotated[
        bool, typer.Option("--no-promote", help="Leave what passes in quarantine, for gems skills promote.")
    ] = False,
    mllm: Mllm = "pocket",
    generator: Generator = "pocket",
    chat_option: ChatOption = None,
    generator_option: GeneratorOption = None,
    user: User = "default",
    memory: Memory = None,
    embedder: Embedder = "minilm",
    skills_dir: SkillsDir = None,
    no_builtin_skills: NoBuiltinSkills = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the trial's images.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Wishes in flight.")] = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draft skills from past runs, try them, and put into use those that help.

    1. In your memory, requirements that one prompt failed and the next passed are gathered by kind; where those changes
       have nothing in common, prompts that passed.
    2. The chat model words a skill for each kind that has enough of them. It goes into quarantine.
    3. The gate: wishes that no draft was made from are drawn with the skill and without, from the same seeds.
       Promoted is what makes more of them right, by an interval without zero, and harms no kind of requirement.
    4. Promoted skills are tried again when as many new wishes have come; one that no longer gains is retired.

    Interrupt it at any moment: the same command goes on. What is learned is offered to everybody who uses this
    $GEMS_HOME, and quotes wishes that it was learned from.
    """
    from gems.errors import InputError
    from gems.learning import drafts, shelf, trials
    from gems.memory.embedder import init_embedder
    from gems.memory.experience import past_runs
    from gems.memory.opening import memory_location, open_store

    settings = trials.GateSettings(prompts=prompts, images=images, seed=seed, concurrency=concurrency)
    context = make_context(
        mllm=mllm,
        generator=generator,
        embedder=embedder,
        user=user,
        memory_url=memory_given(memory),
        skills_dir=skills_path(skills_dir),
        builtin_skills=not no_builtin_skills,
        chat_option=chat_option,
        generator_option=generator_option,
    )
    store = open_store(memory_location(context), init_embedder(embedder))
    runs = list(past_runs(store, user))
    if not runs:
        raise InputError("nothing to learn from: no run is remembered; make some first, with the memory on")
    with shelf.locked(), stoppable() as control:
        lessons = drafts.new_lessons(runs, generator=generator)
        shelved = shelf.learned()
        waiting = [one for one in shelved if trials.waits(one, context)]
        again = [one for one in shelved if trials.is_due(one, runs, context, settings)]
        if not quiet:
            _announce(runs, lessons, waiting, again, settings)
        if dry_run:
            if as_json:
                print_json({"runs": len(runs), "lessons": [_lesson_row(lesson) for lesson in lessons]})
            return
        drafted = _draft(lessons, context, among=len(lessons) + len(waiting), quiet=quiet)
        fresh = {one.skill.name for one in drafted}
        waiting = [*(one for one in waiting if one.skill.name not in fresh), *drafted]
        done: list[Learned] = []
        for one in [*waiting, *again]:
            wishes = trials.held_out_wishes(runs, one.kind, prompts, but=one.gate)
            ran = trials.trial(one, wishes, context, settings, control, partial(_bar, quiet=quiet))
            if ran is None:
                err.print("stopped; the same command goes on", highlight=False)
                raise typer.Exit(INTERRUPTED)
            figures = trials.judge_gate(one.kind, *ran, level=1 - 0.05 / one.among if one in waiting else 0.95)
            done.append(trials.settle(one, figures, wishes, settings, promote=not no_promote))
            if not quiet:
                err.print(f"{one.skill.name}: {done[-1].state}; {_fared(done[-1])}", highlight=False)
    if as_json:
        print_json({"runs": len(runs), "learned": [_learned_row(one) for one in done]})
    elif not done:
        out.print("nothing new to learn", highlight=False)
    else:
        table = Table("skill", "version", "now", "gate")
        for one in done:
            table.add_row(one.skill.name, str(one.version), one.state, escape(_fared(one)))
        out.print(table)


def _draft(lessons: Sequence[Lesson], context: GemsContext, *, among: int, quiet: bool) -> list[Learned]:
    """Drafts of the lessons that the chat model can word, and a line about each."""
    from gems.errors import MalformedAnswerError
    from gems.learning import drafts
    from gems.models.registry import init_mllm

    drafted: list[Learned] = []
    for lesson in lessons:
        try:
            model = init_mllm(context.mllm, context.chat_options)
            drafted.append(drafts.draft_skill(lesson, model, context, among=among))
        except MalformedAnswerError as error:
            err.print(f"{lesson.kind}: not drafted; {escape(str(error))}", highlight=False)
            continue
        if not quiet:
            one = drafted[-1]
            err.print(f"drafted {one.skill.name}, version {one.version}", highlight=False)
    return drafted


@app.command()
@guarded
def promote(name: Name) -> None:
    """Put a learned skill into use that has passed the gate: one that was left in quarantine, or retired."""
    from gems.errors import InputError
    from gems.learning import shelf

    with shelf.locked():
        found = shelf.learned(name)
        one = next((o for o in found if o.state != "promoted"), None)
        if one is None:
            raise InputError(f"{name} is promoted already")
        if not one.gate.get("passed"):
            raise InputError(
                f"{name} has not passed the gate ({_fared(one)}); gems skills learn tries it. To use it all the same, "
                f"copy {one.folder} to a folder of your own, such as ~/.config/gems/skills"
            )
        shelf.move(one, "promoted")
    out.print(f"{name} is offered to the planner from the next run on", highlight=False)


@app.command()
@guarded
def retire(name: Name) -> None:
    """Take a learned skill out of use. It is kept, with its figures: gems skills promote brings it back."""
    from gems.errors import InputError
    from gems.learning import shelf

    with shelf.locked():
        one = next((o for o in shelf.learned(name) if o.state == "promoted"), None)
        if one is None:
            raise InputError(f"{name} is not in use")
        shelf.move(one, "retired")
    out.print(f"{name} is not offered any more", highlight=False)


@app.command()
@guarded
def diff(
    name: Name,
    old: Annotated[int | None, typer.Argument(help="A version.", show_default="the one before")] = None,
    new: Annotated[int | None, typer.Argument(help="A later one.", show_default="the last")] = None,
) -> None:
    """What changed between two versions of a learned skill."""
    from gems.learning.shelf import difference

    sys.stdout.write(difference(name, old, new))


def _announce(
    runs: list[Any], lessons: list[Any], waiting: list[Learned], again: list[Learned], settings: GateSettings
) -> None:
    """What is going to be tried, and what it may cost at most."""
    err.print(f"{len(runs)} runs are remembered", highlight=False)
    for lesson in lessons:
        err.print(
            f"to be drafted: {lesson.kind}, from {len(lesson.fixes)} "
            f"{'requirements that another prompt fixed' if lesson.is_contrast else 'prompts that passed'} "
            f"({escape(', '.join(map(repr, lesson.phrases))) or 'no phrase in common'})",
            highlight=False,
        )
    for one in waiting:
        err.print(f"waits for the gate: {one.skill.name}", highlight=False)
    for one in again:
        err.print(f"to be tried again: {one.skill.name}", highlight=False)
    trials = len(lessons) + len(waiting) + len(again)
    if trials:
        images = trials * 2 * (settings.prompts + settings.prompts // 2) * settings.images
        err.print(f"that costs at most {images} images, and a planner and a verifier call or two for each")


def _bar(what: str, total: int, *, quiet: bool) -> Any:
    return batch_bar(total, what=what, quiet=quiet)


def _fared(one: Learned) -> str:
    """A learned skill's gate in one line."""
    gate = one.gate
    if not gate:
        return "it has not been through the gate"
    low, high = gate["interval"]
    return (
        f"{gate['reason']}: {gate['points']:+.1f} points ({low:+.1f} to {high:+.1f}) on {gate['wishes']} wishes, "
        f"{gate['won']} won, {gate['lost']} lost"
    )


def _row(skill: Skill) -> dict[str, Any]:
    return {
        "name": skill.name,
        "origin": skill.origin,
        "description": skill.description,
        "path": str(skill.path),
        "checks": [f"{check.kind}: {check.question}" for check in skill.checks],
        "references": skill.references,
    }


def _learned_row(one: Learned) -> dict[str, Any]:
    return {
        "name": one.skill.name,
        "version": one.version,
        "state": one.state,
        "kind": one.kind,
        "path": str(one.skill.path),
        "gate": one.gate,
    }


def _lesson_row(lesson: Any) -> dict[str, Any]:
    return {"kind": lesson.kind, "phrases": lesson.phrases, "fixes": len(lesson.fixes), "tried": lesson.tried}


def _tell(problems: tuple[str, ...], notices: tuple[str, ...]) -> None:
    for problem in problems:
        err.print(f"[red]✗[/] {escape(problem)}", highlight=False)
    for notice in notices:
        err.print(f"[yellow]![/] {escape(notice)}", highlight=False)
