"""``gems doctor``: will this set-up work? Told before anything is spent on a run."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gems import __version__
from gems.graph.context import ROLES, GemsContext
from gems.graph.state import Requirement, Usage
from gems.secrets import one_line

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

__all__ = ["Check", "diagnose"]

_PACKAGES: Final = (
    "langgraph",
    "langchain-core",
    "torch",
    "diffusers",
    "transformers",
    "faiss-cpu",
    "pillow",
    "pydantic",
)
_TRIAL_PROMPT: Final = "a red car"
_TRIAL_QUESTION: Final = Requirement(id="r1", question="Are there any cars in the image?", kind="object")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. ``detail`` says what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    detail: str


def diagnose(context: GemsContext) -> list[Check]:
    """Try everything that a run with these settings needs, one after another; a failure never stops the rest."""
    image: dict[str, Any] = {}

    def generate() -> str:
        from gems.models.generators import GeneratedImage, ImageRequest
        from gems.models.registry import POCKET, init_image_generator

        generator = init_image_generator(context.generator, context.generator_options)
        check = getattr(generator, "check", None)
        if context.generator not in POCKET and callable(check):  # a trial could take minutes, or money
            return f"{check()}; {'can edit' if generator.edits else 'cannot edit'}; nothing was drawn"
        [result] = generator.generate([ImageRequest(_TRIAL_PROMPT, 1)])
        if not isinstance(result, GeneratedImage):
            raise result
        image["made"] = result.image
        return f"{generator.name} {generator.fingerprint[:12]}, {result.image.width} x {result.image.height}"

    def verify() -> str:
        from PIL import Image

        from gems.memory.image_store import encode_png
        from gems.nodes.meter import Meter
        from gems.nodes.verifier import inspect_image

        name = context.chat_model("verifier")
        model, told = _chat_model(name, context)
        if told:
            return told
        if "made" not in image:
            # Without an image of the generator's, a white sheet does: all that is tried is whether it can look.
            image["made"] = Image.new("RGB", (256, 256), "white")
        [verdict] = inspect_image(Meter(Usage(), context), model, [_TRIAL_QUESTION], encode_png(image["made"], {}))
        answered = f'answers "{verdict.answer}" ({verdict.confidence:.2f}) to "{_TRIAL_QUESTION.question}"'
        return f"{_named(name, model)} {answered}{_manner(model, context)}"

    def decompose(name: str) -> str:
        from langchain_core.messages import HumanMessage, SystemMessage

        from gems.models.fencing import fence
        from gems.nodes.ask import ask
        from gems.nodes.decomposer import DECOMPOSER, EXAMPLES, Requirements
        from gems.nodes.meter import Meter

        model, told = _chat_model(name, context)
        if told:
            return told
        trial = [SystemMessage(DECOMPOSER), *EXAMPLES, HumanMessage(fence("user_prompt", _TRIAL_PROMPT))]
        asked = ask(Meter(Usage(), context), model, Requirements, trial).form.requirements
        return f'{_named(name, model)} asks {len(asked)} questions about "{_TRIAL_PROMPT}"{_manner(model, context)}'

    def embed() -> str:
        from gems.memory.embedder import init_embedder

        return f"{context.embedder}, {len(init_embedder(context.embedder).embed_query(_TRIAL_PROMPT))} dimensions"

    def remember() -> str:
        from gems.memory.image_store import ImageStore
        from gems.paths import home

        ImageStore(context.images_url)
        return str(home())

    def recall() -> str:
        from gems.database import is_database
        from gems.memory.embedder import init_embedder
        from gems.memory.opening import memory_location, open_store
        from gems.paths import home

        where = memory_location(context)
        store = open_store(where, init_embedder(context.embedder))
        place = "a database, with the checkpoints" if where and is_database(where) else where or home() / "memory"
        return f"{type(store).__name__} in {place}"

    def skills() -> str:
        from gems.skills.loader import load_skills

        library = load_skills(context.skills_dir, builtin=context.builtin_skills)
        skipped = f"; {'; '.join(library.problems)}" if library.problems else ""
        return ", ".join(library.skills) + skipped

    def inspect() -> str:
        from gems.models.inspectors import INSPECTORS
        from gems.models.registry import init_inspector

        found = {name: init_inspector(name) is not None for name in context.inspectors}
        return ", ".join(
            name
            if here
            else f"no {name} (the chat model alone judges; to have it: pip install '{INSPECTORS[name].package}')"
            for name, here in found.items()
        )

    checks = [Check("gems", True, __version__)]
    checks += [_try(package, partial(importlib.metadata.version, package)) for package in _PACKAGES]
    checks += [_try("home folder", remember), _try("skills", skills)]
    if context.inspectors:
        checks.append(_try("inspectors", inspect))
    checks += [_try("generator", generate, timed=True), _try("vision chat model", verify, timed=True)]
    others = dict.fromkeys(context.chat_model(role) for role in ROLES)
    for name in others:
        if name != context.chat_model("verifier"):
            roles = [role for role in ROLES if context.chat_model(role) == name]
            checks.append(_try(", ".join(roles), partial(decompose, name), timed=True))
    if context.memory:
        checks += [_try("embedder", embed, timed=True), _try("memory", recall)]
    return checks


def _chat_model(name: str, context: GemsContext) -> tuple[BaseChatModel, str]:
    """A chat model and, where a trial would take minutes of loading, what it tells of itself instead."""
    from gems.models.registry import init_mllm

    model = init_mllm(name, context.chat_options)
    check = getattr(model, "check", None)
    return model, f"{name}, {check()}; nothing was loaded" if callable(check) else ""


def _named(name: str, model: BaseChatModel) -> str:
    from gems.models.registry import model_fingerprint

    fingerprint = model_fingerprint(model)
    return name if fingerprint in name else f"{name} {fingerprint[:12]}"


def _manner(model: BaseChatModel, context: GemsContext) -> str:
    """In which way the model gave its structured answer."""
    from gems.models.structured import capabilities_of

    way = capabilities_of(model, context.chat_options.structured).methods[0]
    return {"json_schema": " (by JSON schema)", "tool": "", "json_mode": " (in JSON mode)"}.get(way, " (as text)")


def _try(name: str, action: Callable[[], str], *, timed: bool = False) -> Check:
    start = time.perf_counter()
    try:
        detail = action()
    except Exception as error:  # whatever is wrong is what the user came to hear
        return Check(name, False, one_line(error, 2000) or type(error).__name__)
    return Check(name, True, f"{detail}, {time.perf_counter() - start:.1f} s" if timed else detail)
