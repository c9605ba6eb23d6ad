"""The arms of a comparison: ways to make an image for a prompt, from one shot to the whole agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gems.errors import InputError

__all__ = ["ARMS", "Arm", "Comparison", "choose_arms", "comparisons"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to make an image."""

    name: str
    what: str
    """Description of the arm, for the report."""
    generator: str = "pocket"
    settings: dict[str, Any] | None = field(default_factory=dict, hash=False)
    """Fields of the context. None: the generator alone, without a graph."""

    @property
    def ordered(self) -> bool:
        """Whether a prompt's result depends on the prompts before it, so that they run one after another.

        One order of the prompts is then one sample, so such an arm is run in several orders.
        """
        return bool(self.settings and self.settings.get("memory"))


def _arms(images: int) -> list[Arm]:
    once: dict[str, Any] = {"memory": False, "max_rounds": 1, "candidates": 1}
    loop: dict[str, Any] = {"memory": False, "skills": False, "max_rounds": images, "candidates": 1}
    best_of = {**once, "candidates": images}
    return [
        Arm("single", "the user's prompt as it is, one image, no agent", settings=None),
        Arm("rewrite", "the planner writes the draft with its skills, one image", settings=once),
        Arm(
            f"best-of-{images}",
            f"the user's prompt as it is, {images} images, the verifier chooses",
            settings={**best_of, "plan": False},
        ),
        Arm(
            f"plan+best-of-{images}",
            f"the planner writes the draft without skills, {images} images, the verifier chooses",
            settings={**best_of, "skills": False},
        ),
        Arm(
            f"rewrite+best-of-{images}",
            f"the planner writes the draft with its skills, {images} images, the verifier chooses",
            settings=best_of,
        ),
        Arm("loop", f"plan, verify, refine: up to {images} images; neither skills nor memory", settings=loop),
        Arm("loop+skills", "the loop, and skills for the planner", settings={**loop, "skills": True}),
        Arm("loop+memory", "the loop, and a memory that starts empty and fills", settings={**loop, "memory": True}),
        Arm(
            "loop+memory+skills",
            "the whole agent: loop, memory and skills",
            settings={**loop, "memory": True, "skills": True},
        ),
    ]


ARMS: Final = tuple(arm.name.replace("5", "n") for arm in _arms(5))
"""Names of the arms; n is the number of images that a prompt may cost."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms on the same prompts and seeds, and the question that their difference answers."""

    better: str
    than: str
    question: str


def choose_arms(names: Sequence[str], generators: Sequence[str], images: int) -> list[Arm]:
    """The arms with these names ("all" for all of them) on each generator; the first generator's have plain names.

    Raises:
        InputError: A name is unknown.
    """
    arms = _arms(images)
    arm_of = {arm.name.replace(f"best-of-{images}", "best-of-n"): arm for arm in arms} | {arm.name: arm for arm in arms}
    if not names:
        raise InputError(f"no arm is named; choose from: all, {', '.join(ARMS)}")
    if unknown := [name for name in names if name not in arm_of and name != "all"]:
        raise InputError(f"unknown arm {unknown[0]!r}; choose from: all, {', '.join(ARMS)}")
    if "all" not in names:
        arms = [arm for arm in arms if arm in [arm_of[name] for name in names]]
    return [
        Arm(arm.name if generator == generators[0] else f"{arm.name}@{generator}", arm.what, generator, arm.settings)
        for generator in generators
        for arm in arms
    ]


def comparisons(generators: Sequence[str], images: int) -> list[Comparison]:
    """The questions that the arms answer."""
    best_of = f"best-of-{images}"
    own = [
        Comparison("rewrite", "single", "How much does the planner add, before any image is looked at?"),
        Comparison(best_of, "single", "How much do more images add?"),
        Comparison(f"plan+{best_of}", best_of, "How much does the planner add to choosing among images?"),
        Comparison("loop", best_of, "How much does the loop add over drawing more images?"),
        Comparison("loop", f"plan+{best_of}", "How much does the loop add over planning and choosing?"),
        Comparison("loop+skills", "loop", "How much do skills add to the loop?"),
        Comparison("loop+memory", "loop", "How much does memory add to the loop?"),
        Comparison("loop+memory+skills", "loop+memory", "How much do skills add to the loop with memory?"),
        Comparison("loop+memory+skills", "loop+skills", "How much does memory add to the loop with skills?"),
        Comparison(
            "loop+memory+skills", f"rewrite+{best_of}", "How much does the agent add over rewriting and choosing?"
        ),
    ]
    return [
        *own,
        *(
            comparison
            for other in generators[1:]
            for comparison in (
                Comparison("loop+memory+skills", f"single@{other}", f"Does the agent beat one shot of {other}?"),
                Comparison("loop+memory+skills", f"rewrite@{other}", f"And {other} with the planner's prompt?"),
            )
        ),
    ]
