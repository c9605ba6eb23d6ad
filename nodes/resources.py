"""The models, stores and skills that the nodes use: objects given to ``build_graph``, or those the context names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final, Protocol

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.types import Command

from gems.errors import BackendError
from gems.faces import Turns, Workers
from gems.graph.context import ROLES, GemsContext, Role
from gems.graph.state import GemsState, Kind
from gems.memory.embedder import check_embedder_name, init_embedder
from gems.memory.image_store import ImageStore, open_images
from gems.memory.opening import memory_location, open_store
from gems.models.chat_options import check_chat_options
from gems.models.generators import ImageGenerator, Local, check_generator_options
from gems.models.inspectors import INSPECTORS, Inspector
from gems.models.local_weights import load_now
from gems.models.registry import (
    check_chat_name,
    check_generator_name,
    check_inspector_name,
    init_image_generator,
    init_inspector,
    init_mllm,
)
from gems.options import ChatOptions, RoleOptions
from gems.shared import holding, release, shared
from gems.skills.catalogue import offer, suits
from gems.skills.format import Skill
from gems.skills.loader import SkillLibrary, load_skills
from gems.skills.snapshots import skills_in, take_snapshot

__all__ = ["Node", "Resources", "check_names", "check_options", "user_store"]


class Node(Protocol):
    """A graph node: reads the state, returns the keys that it changes, or a command. See ``gems.nodes.runnables``."""

    __name__: str

    def __call__(
        self, state: GemsState, runtime: Runtime[GemsContext]
    ) -> GemsState | Awaitable[GemsState] | Awaitable[GemsState | Command[Any]]:
        """Do the node's work."""
        ...


_MOST_CONTEXTS: Final = 256


@dataclass(frozen=True)
class Resources:
    """Resolves models, stores and skills. An object given here takes precedence over a name in the context."""

    mllm: BaseChatModel | None = None
    role_models: Mapping[Role, BaseChatModel] = field(default_factory=dict)
    """Chat models for single roles."""
    image_generator: ImageGenerator | None = None
    embedder: Embeddings | None = None
    store: BaseStore | None = None
    image_store: ImageStore | None = None
    own_inspectors: tuple[Inspector, ...] = ()
    settings: GemsContext | None = None
    """Settings that are fixed for the graph, whatever the run's context says."""
    thumbnails: int = 0
    workers: Workers = field(default_factory=Workers, compare=False)
    """The threads in which the graph works when it runs on an event loop."""

    def context(self, runtime: Runtime[GemsContext]) -> GemsContext:
        """The run's settings.

        Raises:
            InputError: A value cannot be used, or is one that only the operator may give.
        """
        raw: object = runtime.context
        has_store = runtime.store is not None
        if raw is not None and not isinstance(raw, GemsContext):  # anybody's object, which may change
            return self._resolved(raw, has_store)
        # Every node asks for them, and to check them takes a millisecond.
        key = (id(raw), has_store)
        entry = self._contexts.get(key)  # in one look: another thread may forget it next
        if entry is None:
            entry = raw, self._resolved(raw, has_store)
            if len(self._contexts) >= _MOST_CONTEXTS:
                self._contexts.clear()
            self._contexts[key] = entry
        return entry[1]

    @cached_property
    def _contexts(self) -> dict[tuple[int, bool], tuple[object, GemsContext]]:
        """The settings of the latest runs by what was given, which is kept so that its id stays its own."""
        return {}

    def _resolved(self, raw: object, has_store: bool) -> GemsContext:
        context = GemsContext.resolve(raw)
        if self.settings is not None:
            fixed = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
            authority = context.authority | self.settings.authority
            context = context.model_copy(update=fixed).with_authority(authority)
        context.check_authority(self._unused_settings | ({"memory_url"} if has_store else set()))
        return context

    @cached_property
    def _unused_settings(self) -> AbstractSet[str]:
        """The settings in whose place an object is used."""
        replaced = {
            "generator generator_options": self.image_generator,
            " ".join(("mllm", "chat_options", "role_options", *ROLES)): None
            if any(map(self._has_fixed_name, ROLES))
            else self.mllm,
            "embedder": self.embedder,
            "memory_url": self.store,
            "images_url": self.image_store,
        }
        names = {name for names, part in replaced.items() if part is not None for name in names.split()}
        return names.union(self.role_models)

    def chat(self, context: GemsContext, role: Role) -> BaseChatModel:
        """The chat model of a role: of that role in this graph, of this graph, or the one that the context names."""
        model = self.role_models.get(role)
        if model is None and not self._has_fixed_name(role):
            model = self.mllm
        with self._held():
            return model or init_mllm(context.chat_model(role), context.options_of(role), context.authority)

    def _has_fixed_name(self, role: Role) -> bool:
        """Whether the graph's own settings name a model for this role."""
        return self.settings is not None and getattr(self.settings, role) is not None

    def inspectors(self, context: GemsContext, kinds: AbstractSet[Kind]) -> list[Inspector]:
        """The inspectors for these kinds of requirements: the graph's own, and those named that are installed.

        A named inspector is imported only if a requirement is of one of its kinds.
        """
        names = (name for name in context.inspectors if name not in INSPECTORS or INSPECTORS[name].kinds & kinds)
        with self._held():
            by_name = [init_inspector(name) for name in names]
        return [inspector for inspector in (*self.own_inspectors, *by_name) if inspector and inspector.kinds & kinds]

    def generator(self, context: GemsContext) -> ImageGenerator:
        """The image generator."""
        with self._held():
            return self.image_generator or init_image_generator(
                context.generator, context.generator_options, context.authority
            )

    def load(self, settings: GemsContext | None = None) -> None:
        """Load the models that a run with these settings would load.

        Raises:
            InputError: A setting cannot be used.
            BackendError: A model cannot be loaded.
        """
        context = self._resolved(settings, has_store=False)
        for model in (self.generator(context), *(self.chat(context, role) for role in ROLES)):
            load_now(model)
        if context.memory or context.skills:
            with self._held():
                (self.embedder or init_embedder(context.embedder)).embed_query("a first text loads the weights")

    def close(self) -> None:
        """Free threads, and the models and stores that nobody else uses. Objects that were given stay open."""
        self.workers.close()
        release(self.workers)
        if self.embedder is not None:
            self.__dict__.pop("_open_store", None)
        self._contexts.clear()
        self._lines.clear()

    def _held(self) -> AbstractContextManager[None]:
        """For blocks that ask for models by name, which the graph then has until it is closed."""
        return holding(self.workers)

    def chat_and_generator(self, context: GemsContext, role: Role) -> tuple[BaseChatModel, ImageGenerator]:
        """The chat model of a role that writes for the image generator, and that generator."""
        return self.chat(context, role), self.generator(context)

    def turns(self, generator: ImageGenerator) -> AbstractAsyncContextManager[None]:
        """A place in the line of those who wait for a generator, if it draws in this process."""
        if not isinstance(generator, Local):
            return nullcontext()
        places = max(1, len(generator.replicas.devices))  # each copy of the model draws for another caller
        return self._lines.setdefault(id(generator), (generator, Turns(places)))[1]

    @cached_property
    def _lines(self) -> dict[int, tuple[ImageGenerator, Turns]]:
        return {}

    def check_options(self, context: GemsContext) -> None:
        """Check the options of the models that the context names; see ``check_options``.

        A model that cannot be found is left to the node that uses it, whose failure does not cost the run its result.
        """
        with self._held():
            if self.mllm is None:
                _check_chat_options(context, on_this_machine=True)
            if self.image_generator is None:
                with suppress(BackendError):
                    _check_generator_options(context, on_this_machine=True)

    def memory(self, context: GemsContext, runtime: Runtime[GemsContext]) -> BaseStore | None:
        """The store of trajectories: of the parent graph, this graph or the user, in that order; None if it is off."""
        if not context.memory:
            return None
        if runtime.store or self.store:
            return runtime.store or self.store
        url = memory_location(context)
        with self._held():
            return self._open_store(url) if self.embedder else user_store(url, context.embedder)

    @cached_property
    def _open_store(self) -> Callable[[str | None], BaseStore]:
        """Opens each store once, with the graph's own embedder."""
        assert self.embedder is not None
        return shared(partial(open_store, embedder=self.embedder))

    def images(self, context: GemsContext) -> ImageStore:
        """The store of images."""
        return self.image_store or open_images(context.images_url)

    def skills(self, context: GemsContext) -> SkillLibrary:
        """All skills of the search path."""
        return load_skills(context.skills_dir, builtin=context.builtin_skills)

    def offer_skills(self, context: GemsContext, prompt: str) -> dict[str, str]:
        """A snapshot of the skills to offer for a prompt."""
        if not context.skills:
            return {}
        generator = self.generator(context)
        skills = [
            skill
            for name, skill in self.skills(context).skills.items()
            if name not in context.without_skills and suits(skill, generator.name, generator.fingerprint)
        ]
        with self._held():
            return take_snapshot(offer(skills, prompt, lambda: self.embedder or init_embedder(context.embedder)))

    def offered_skills(self, context: GemsContext, snapshot: Mapping[str, str]) -> dict[str, Skill]:
        """The skills of a run's snapshot, by name."""
        return skills_in(snapshot, lambda: self.skills(context).skills)


def check_names(settings: GemsContext) -> None:
    """Check the names of models that these settings give, without loading or contacting anything.

    Raises:
        InputError: No model can have one of the names.
    """
    names = {name: getattr(settings, name) for name in settings.model_fields_set}
    for role in ("mllm", *ROLES):
        if names.get(role):
            check_chat_name(names[role], settings.options_of(role))
    if "generator" in names:
        check_generator_name(settings.generator)
    if "embedder" in names:
        check_embedder_name(settings.embedder)
    for inspector in names.get("inspectors", ()):
        check_inspector_name(inspector)


def check_options(context: GemsContext, *, on_this_machine: bool = True) -> None:
    """Check that the models which the settings name honour the options, before anything is spent on a run.

    Args:
        context: The settings.
        on_this_machine: Also judge what depends on this machine. False where another machine will draw.

    Raises:
        InputError: A model cannot be made, or would ignore an option.
        BackendError: A model cannot be found.
    """
    _check_chat_options(context, on_this_machine=on_this_machine)
    _check_generator_options(context, on_this_machine=on_this_machine)


def _check_chat_options(context: GemsContext, *, on_this_machine: bool) -> None:
    if (context.chat_options, context.role_options) == (ChatOptions(), RoleOptions()):
        return
    models: dict[str, BaseChatModel] = {}
    for role in ROLES:
        name = context.chat_model(role)
        model = init_mllm(name, context.options_of(role), context.authority)
        models.setdefault(name, model)
        if own := getattr(context.role_options, role):
            check_chat_options({name: model}, own, on_this_machine=on_this_machine)
    check_chat_options(models, context.chat_options, on_this_machine=on_this_machine)


def _check_generator_options(context: GemsContext, *, on_this_machine: bool) -> None:
    generator = init_image_generator(context.generator, context.generator_options, context.authority)
    check_generator_options(generator, on_this_machine=on_this_machine)


@shared
def user_store(url: str | None, embedder: str) -> BaseStore:
    """The memory at a location, opened once per process."""
    return open_store(url, init_embedder(embedder))
