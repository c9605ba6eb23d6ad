"""``gems doctor``: checks whether a setup works, before anything is spent on a run."""

from __future__ import annotations

import importlib.metadata
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from gems import __version__
from gems.extras import how_to_install
from gems.faces import run_here
from gems.graph.context import ROLES, GemsContext, Role
from gems.graph.state import Requirement, Usage
from gems.secrets import one_line

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from PIL.Image import Image

    from gems.models.generators import ImageGenerator
    from gems.models.option_effects import OptionEffect

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
_LONGEST_DETAIL: Final = 2000
"""Characters of an error that are shown."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    ok: bool
    detail: str
    """The finding, or what is wrong and what to do."""
    options: tuple[OptionEffect, ...] = ()
    """What each option does, where the check is about options."""


@dataclass(slots=True)
class _Setup:
    """The setup under check."""

    context: GemsContext
    image: Image | None = None
    """What the generator drew in its trial; the verifier looks at it."""


_Trial: TypeAlias = Callable[[], str]
"""Tries one thing, and says what it found; raises if it does not work."""


def diagnose(context: GemsContext) -> list[Check]:
    """Try everything that a run with these settings needs, one after another; a failure never stops the rest."""
    setup = _Setup(context)
    checks = [Check("gems", True, __version__)]
    checks += [_try(name, trial) for name, trial in _quick_trials(setup)]
    checks += [*_generator_options(setup), *_chat_options(setup)]
    checks += [_try(name, trial, timed=True) for name, trial in _model_trials(setup)]
    if context.memory:
        checks += [_try("embedder", partial(_embed, setup), timed=True), _try("memory", partial(_open_memory, setup))]
    return checks


def _quick_trials(setup: _Setup) -> Iterator[tuple[str, _Trial]]:
    for package in _PACKAGES:
        yield package, partial(importlib.metadata.version, package)
    yield "home folder", partial(_open_home, setup)
    yield "skills", partial(_list_skills, setup)
    if setup.context.inspectors:
        yield "inspectors", partial(_list_inspectors, setup)
    if {"pocket", "pocket-large"} & {setup.context.generator, *_chat_names(setup)}:
        yield "words of the pocket models", _list_words
    if "open" in {setup.context.generator, *_chat_names(setup)}:
        yield "words of the open models", _list_open_words


def _model_trials(setup: _Setup) -> Iterator[tuple[str, _Trial]]:
    yield "generator", partial(_draw, setup)
    yield "vision chat model", partial(_verify, setup)
    calls = {role: (setup.context.chat_model(role), setup.context.options_of(role)) for role in ROLES}
    for role in ROLES:
        roles = [other for other in ROLES if calls[other] == calls[role]]
        if role == roles[0] and "verifier" not in roles:  # how that one is called has just been tried
            yield ", ".join(roles), partial(_decompose, setup, role)


def _try(name: str, trial: _Trial, *, timed: bool = False) -> Check:
    start = time.perf_counter()
    try:
        detail = trial()
    except Exception as error:  # whatever is wrong is what the user wants to know
        return Check(name, False, one_line(error, _LONGEST_DETAIL) or type(error).__name__)
    return Check(name, True, f"{detail}, {time.perf_counter() - start:.1f} s" if timed else detail)


# --- folders and files ----------------------------------------------------------------------------------------------


def _open_home(setup: _Setup) -> str:
    from gems.memory.image_store import ImageStore
    from gems.paths import home

    ImageStore(setup.context.images_url)
    folder = home()
    if folder.stat().st_mode & 0o077:
        return f"{folder}; other users of this machine can read it: chmod -R go-rwx {shlex.quote(str(folder))}"
    return str(folder)


def _list_skills(setup: _Setup) -> str:
    from gems.skills.loader import load_skills

    library = load_skills(setup.context.skills_dir, builtin=setup.context.builtin_skills)
    problems = f"; {'; '.join(library.problems)}" if library.problems else ""
    return ", ".join(library.skills) + problems


def _list_inspectors(setup: _Setup) -> str:
    from gems.models.inspectors import INSPECTORS
    from gems.models.registry import init_inspector

    return ", ".join(
        name
        if init_inspector(name) is not None
        else f"no {name} (the chat model judges alone; to add it: {how_to_install(INSPECTORS[name].extra)})"
        for name in setup.context.inspectors
    )


def _open_memory(setup: _Setup) -> str:
    from gems.database import is_database
    from gems.memory.embedder import init_embedder
    from gems.memory.opening import memory_location, open_store
    from gems.paths import home

    location = memory_location(setup.context)
    store = open_store(location, init_embedder(setup.context.embedder))
    if location and is_database(location):
        return f"{type(store).__name__} in a database, with the checkpoints"
    return f"{type(store).__name__} in {location or home() / 'memory'}"


def _list_words() -> str:
    from gems.models.pocket.vocabulary import WORD_LISTS

    return "; ".join(f"{kind}: {', '.join(words)}" for kind, words in WORD_LISTS.items())


def _list_open_words() -> str:
    from gems.models.open.phrasebook import TONGUES
    from gems.models.open.things import BACKGROUNDS, LOOK_NAMES, PLACES, RELATIONS, SIZES, THINGS

    lists = {
        "looks": LOOK_NAMES[1:],
        "sizes": SIZES,
        "relations": RELATIONS,
        "places": PLACES,
        "backgrounds": BACKGROUNDS,
        "languages": TONGUES,
    }
    words = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in lists.items())
    return f"{len(THINGS)} things, counts up to twelve, a short text in quotes; {words}"


# --- options --------------------------------------------------------------------------------------------------------


def _generator_options(setup: _Setup) -> Iterator[Check]:
    """What each option does with the image generator; nothing if it cannot be found, which its own check says."""
    from gems.models.option_effects import ExplainsOptions, RefusedOptionsError, effects_of
    from gems.models.registry import init_image_generator

    context = setup.context
    effects: tuple[OptionEffect, ...] = ()
    try:
        generator = init_image_generator(context.generator, context.generator_options, context.authority)
        if isinstance(generator, ExplainsOptions):
            effects = generator.option_effects()
        else:
            effects = effects_of(context.generator_options, {})
    except RefusedOptionsError as error:
        effects = error.effects
    except Exception:  # the check of the generator itself reports it
        return
    if effects:
        refused = any(effect.status == "refused" for effect in effects)
        yield Check("generator options", not refused, _in_words(effects), effects)


def _chat_options(setup: _Setup) -> Iterator[Check]:
    """What each option that was set does with each chat model. One that another role's model honours is no fault."""
    from gems.models.chat_options import chat_option_effects
    from gems.models.registry import init_mllm

    context = setup.context
    tables: dict[str, tuple[OptionEffect, ...]] = {}
    for role in ROLES:
        name, options = context.chat_model(role), context.options_of(role)
        with suppress(Exception):  # the check of the model itself reports it
            model = init_mllm(name, options, context.authority)
            tables.setdefault(name, ())
            tables[name] = tuple(dict.fromkeys((*tables[name], *chat_option_effects(name, model, options))))
    honoured = {effect.option for table in tables.values() for effect in table if effect.status == "honoured"}
    for name, effects in tables.items():
        if effects:
            ok = all(effect.option in honoured for effect in effects)
            yield Check(f"chat options of {name}", ok, _in_words(effects), effects)


def _chat_names(setup: _Setup) -> list[str]:
    return list(dict.fromkeys(setup.context.chat_model(role) for role in ROLES))


def _in_words(effects: tuple[OptionEffect, ...]) -> str:
    words = {"honoured": "{0}={1} honoured", "refused": "{0} refused: {1}", "default": "{0} by default {1}"}
    return "; ".join(words[effect.status].format(effect.option, effect.detail) for effect in effects)


# --- models ---------------------------------------------------------------------------------------------------------


def _draw(setup: _Setup) -> str:
    from gems.models.generators import GeneratedImage, ImageRequest
    from gems.models.registry import POCKET, init_image_generator

    name = setup.context.generator
    generator = init_image_generator(name, setup.context.generator_options, setup.context.authority)
    check = getattr(generator, "check", None)
    if name not in POCKET and callable(check):  # drawing could take minutes, or cost money
        edits = "can edit" if generator.edits else "cannot edit"
        return f"{check()}; {edits}; {_seeds(generator)}; nothing was drawn"
    [result] = generator.generate([ImageRequest(_TRIAL_PROMPT, 1)])
    if not isinstance(result, GeneratedImage):
        raise result
    setup.image = result.image
    return f"{generator.name} {generator.fingerprint[:12]}, {result.image.width} x {result.image.height}"


def _seeds(generator: ImageGenerator) -> str:
    """What is known about seeds before an image is drawn."""
    from gems.models.generators import is_reproducible
    from gems.models.public_names import is_remote

    if not is_reproducible(generator):
        return "takes no seed: its runs cannot be replayed"
    if is_remote(generator.name):
        return "is sent the seed, but only 'gems replay' of a run shows whether it honours it"
    return "honours the seed"


def _verify(setup: _Setup) -> str:
    from PIL import Image

    from gems.memory.image_store import encode_png
    from gems.nodes.examiner import inspect_image, require_seen
    from gems.nodes.meter import Meter

    name, model, own_report = _chat_model(setup, "verifier")
    if own_report:
        return own_report
    # Without an image from the generator, a white one will do: this only tries whether the model can look at images.
    image = setup.image or Image.new("RGB", (256, 256), "white")
    png, meter = encode_png(image, {}), Meter(Usage(), setup.context, "verifier")
    [verdict] = run_here(inspect_image(meter, model, [_TRIAL_QUESTION], png)).verdicts
    require_seen([verdict])
    answer = f'answers "{verdict.answer}" ({verdict.confidence:.2f}) to "{_TRIAL_QUESTION.question}"'
    return f"{_label(name, model)} {answer}{_answer_format(setup, model, 'verifier')}"


def _decompose(setup: _Setup, role: Role) -> str:
    from langchain_core.messages import HumanMessage, SystemMessage

    from gems.models.fencing import fence
    from gems.nodes.ask import ask
    from gems.nodes.decomposer import DECOMPOSER, EXAMPLES, Requirements
    from gems.nodes.meter import Meter

    name, model, own_report = _chat_model(setup, role)
    if own_report:
        return own_report
    messages = [SystemMessage(DECOMPOSER), *EXAMPLES, HumanMessage(fence("user_prompt", _TRIAL_PROMPT))]
    meter = Meter(Usage(), setup.context, role)
    requirements = run_here(ask(meter, model, Requirements, messages)).form.requirements
    answer = f'asks {len(requirements)} questions about "{_TRIAL_PROMPT}"'
    return f"{_label(name, model)} {answer}{_answer_format(setup, model, role)}"


def _embed(setup: _Setup) -> str:
    from gems.memory.embedder import init_embedder

    name = setup.context.embedder
    return f"{name}, {len(init_embedder(name).embed_query(_TRIAL_PROMPT))} dimensions"


def _chat_model(setup: _Setup, role: Role) -> tuple[str, BaseChatModel, str]:
    """A role's model with its name, and what it reports of itself where loading it for a trial would take minutes."""
    from gems.models.registry import init_mllm

    name = setup.context.chat_model(role)
    model = init_mllm(name, setup.context.options_of(role), setup.context.authority)
    check = getattr(model, "check", None)
    return name, model, f"{name}, {check()}; nothing was loaded" if callable(check) else ""


def _label(name: str, model: BaseChatModel) -> str:
    from gems.models.registry import model_fingerprint

    fingerprint = model_fingerprint(model)
    return name if fingerprint in name else f"{name} {fingerprint[:12]}"


def _answer_format(setup: _Setup, model: BaseChatModel, role: Role) -> str:
    """In which format the model gave its structured answer."""
    from gems.models.capabilities import capabilities_of

    method = capabilities_of(model, setup.context.options_of(role).structured).methods[0]
    return {"json_schema": " (by JSON schema)", "tool": "", "json_mode": " (in JSON mode)"}.get(method, " (as text)")
