"""Among hundreds of skills, does the catalogue stay short, and is the right skill still in it?

    python benchmarks/skill_retrieval.py --skills 500

The library contains the built-in skills, each with twelve prompts that need it (``skill_wishes.json``, written without
looking at the retrieval's results); skills for scenes, such as artists write, with one prompt each; and skills of other
trades, such as every collection contains. Printed as JSON: how often the right skill is offered, the length of the
catalogue with twenty skills (the built-in ones and ten scenes) and with all, and the time that choosing takes.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any, Final

from langchain_core.messages.utils import count_tokens_approximately

from gems.memory.embedder import init_embedder
from gems.skills.catalogue import MAX_OFFERED, offer
from gems.skills.format import Skill
from gems.skills.loader import load_skills

SCENES: Final = (
    ("harbour", "ships, ropes and gulls at a quay", "fishing boats coming home to the {} quay"),
    ("kitchen", "pots, steam and food being cooked", "a cook stirring soup in the {} kitchen"),
    ("forest", "trees, undergrowth and light through leaves", "a deer between the trees of a {} forest"),
    ("market", "stalls, crowds and goods on display", "people buying fruit at the {} market"),
    ("workshop", "tools, benches and things half made", "a carpenter at the bench of a {} workshop"),
    ("garden", "flower beds, paths and fountains", "roses along the path of a {} garden"),
    ("library", "shelves, ladders and readers", "a girl reading on a ladder in the {} library"),
    ("train", "carriages, platforms and travellers", "travellers waiting for the {} train"),
    ("castle", "towers, walls and gates", "a knight before the gate of the {} castle"),
    ("aquarium", "fish, corals and glass", "children looking at sharks in the {} aquarium"),
    ("concert", "musicians, stage and audience", "a violinist on the stage of the {} concert"),
    ("laboratory", "flasks, instruments and scientists", "a chemist with a flask in the {} laboratory"),
)
MOODS: Final = (
    "snowy",
    "flooded",
    "moonlit",
    "abandoned",
    "futuristic",
    "medieval",
    "underwater",
    "paper-cut",
    "sunny",
)
TRADES: Final = (
    "spreadsheets",
    "contracts",
    "database migrations",
    "unit tests",
    "tax returns",
    "podcasts",
    "press releases",
    "container images",
    "patient records",
    "travel bookings",
    "log files",
    "e-mail newsletters",
    "customer tickets",
    "course material",
    "3D printing",
    "recipes",
    "translations",
    "firewalls",
    "job interviews",
    "slide decks",
)
TASKS: Final = (
    *("writing", "reviewing", "cleaning up", "summarising", "planning", "checking", "archiving", "publishing"),
    *("teaching", "automating", "debugging", "estimating", "comparing"),
)
LIGHTS: Final = ("candle light", "neon", "overcast sky", "back light", "flash", "golden hour", "fog", "stained glass")
LENSES: Final = ("wide angle", "macro", "telephoto", "fisheye", "tilt-shift", "drone view", "long exposure", "infrared")


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skills", type=int, default=500, help="size of the library (default %(default)s)")
    args = parser.parse_args()
    print(json.dumps(measure(args.skills), indent=1))


def measure(n: int) -> dict[str, Any]:
    """Figures for a library of ``n`` skills."""
    built_in = built_in_skills()
    scenes = [scene for scene, _ in scene_skills()]
    library = [*scenes, *built_in, *other_skills()]
    library = (library + [_skill(f"filler-{i}", f"Use for matter {i}.") for i in range(n)])[:n]
    started = time.perf_counter()
    offer(library, "anything", init_embedder)
    first_seconds = time.perf_counter() - started

    built_in_cases = [(name, prompt) for name, prompts in labelled_prompts().items() for prompt in prompts["use"]]
    scene_cases = [(skill.name, prompt) for skill, prompt in scene_skills()]
    hits_by_kind, seconds, tokens, small_tokens = dict[str, list[bool]](), list[float](), list[int](), list[int]()
    for name, prompt in [*built_in_cases, *scene_cases]:
        started = time.perf_counter()
        offered = offer(library, prompt, init_embedder)
        seconds.append(time.perf_counter() - started)
        kind = name if name in labelled_prompts() else "scenes"
        hits_by_kind.setdefault(kind, []).append(name in [skill.name for skill in offered])
        tokens.append(cost(offered))
        small_tokens.append(cost(offer([*built_in, *scenes[:10]], prompt, init_embedder)))
    right = [hit for hits in hits_by_kind.values() for hit in hits]
    return {
        "skills": len(library),
        "offered_at_most": MAX_OFFERED,
        "labelled_wishes": len(right),
        "right_one_offered": round(sum(right) / len(right), 4),
        "by_skill": {name: round(sum(hits) / len(hits), 4) for name, hits in hits_by_kind.items()},
        "catalogue_tokens": {"mean": round(sum(tokens) / len(tokens)), "most": max(tokens)},
        "catalogue_tokens_with_20": {"mean": round(sum(small_tokens) / len(small_tokens)), "most": max(small_tokens)},
        "ms_to_choose": round(1000 * sorted(seconds)[len(seconds) // 2], 2),
        "seconds_the_first_time": round(first_seconds, 2),
    }


def built_in_skills() -> list[Skill]:
    """The skills that come with gems, whatever else is installed."""
    return [skill for skill in load_skills().skills.values() if skill.origin == "built in"]


def labelled_prompts() -> dict[str, dict[str, list[str]]]:
    """By built-in skill: prompts that need it ("use") and prompts that do not ("not")."""
    text = (Path(__file__).parent / "skill_wishes.json").read_text(encoding="utf-8")
    prompts: dict[str, dict[str, list[str]]] = json.loads(text)
    return prompts


def scene_skills() -> list[tuple[Skill, str]]:
    """A skill for each scene and mood, with a prompt that needs it."""
    skills = []
    for (scene, content, template), mood in product(SCENES, MOODS):
        description = f"Use when the wish shows a {mood} {scene}: {content}. Not for a {scene} of another kind."
        skills.append((_skill(f"{mood}-{scene}", description), template.format(mood)))
    return skills


def other_skills() -> list[Skill]:
    """Skills of other trades, of photographers and of brand designers."""
    skills = [
        _skill(f"{task}-{trade}", f"Helps with {task} {trade}. Use whenever the user mentions {trade}.")
        for trade, task in product(TRADES, TASKS)
    ]
    skills += [
        _skill(f"{light}-{lens}", f"Use when a photograph is wanted with {light} and {lens}, and describes both.")
        for light, lens in product(LIGHTS, LENSES)
    ]
    skills += [
        _skill(f"{thing}-{task}", f"Use for {task} the look of {thing} in a brand's images, never for documents.")
        for thing, task in product(("logos", "packaging", "posters", "icons", "mascots"), TASKS)
    ]
    return skills


def cost(skills: list[Skill]) -> int:
    """The approximate number of tokens that the planner reads for these skills."""
    return count_tokens_approximately([f"{skill.name} {skill.description}" for skill in skills])


def _skill(name: str, description: str) -> Skill:
    slug = name.replace(" ", "-").lower()
    return Skill(name=slug, description=description, body="Advice.", path=Path(slug) / "SKILL.md")


if __name__ == "__main__":
    main()
