"""What the nodes call: live objects handed to ``build_graph``, or else whatever the context names."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Protocol

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore

from gems.graph.context import GemsContext, Role
from gems.graph.state import GemsState, Kind
from gems.memory.embedder import init_embedder
from gems.memory.image_store import ImageStore, open_images
from gems.memory.opening import memory_location, open_store
from gems.models.generators import ImageGenerator
from gems.models.inspectors import INSPECTORS, Inspector
from gems.models.registry import init_image_generator, init_inspector, init_mllm
from gems.skills.catalogue import offer
from gems.skills.format import Skill
from gems.skills.loader import SkillLibrary, load_skills

__all__ = ["Node", "Resources"]


class Node(Protocol):
    """A graph node: reads the state, returns the keys it changes."""

    def __call__(self, state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        """Do the node's work."""
        ...


@dataclass(frozen=True)
class Resources:
    """Resolves models, stores and skills. An object given here wins over a name in the context."""

    mllm: BaseChatModel | None = None
    image_generator: ImageGenerator | None = None
    embedder: Embeddings | None = None
    store: BaseStore | None = None
    image_store: ImageStore | None = None
    own_inspectors: tuple[Inspector, ...] = ()
    settings: GemsContext | None = None
    """What holds whatever the run's context says."""
    thumbnails: int = 0

    def context(self, runtime: Runtime[GemsContext]) -> GemsContext:
        """The run's settings."""
        context = GemsContext.resolve(runtime.context)
        if self.settings is None:
            return context
        fixed = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        return context.model_copy(update=fixed)

    def chat(self, context: GemsContext, role: Role) -> BaseChatModel:
        """The chat model of a role."""
        return self.mllm or init_mllm(context.chat_model(role), context.chat_options)

    def inspectors(self, context: GemsContext, kinds: AbstractSet[Kind]) -> list[Inspector]:
        """The tools that can say something about such requirements: yours, and those named that are installed.

        Nothing is imported for requirements that nobody has.
        """
        wanted = (name for name in context.inspectors if name not in INSPECTORS or INSPECTORS[name].kinds & kinds)
        named = (init_inspector(name) for name in wanted)
        return [inspector for inspector in (*self.own_inspectors, *named) if inspector and inspector.kinds & kinds]

    def generator(self, context: GemsContext) -> ImageGenerator:
        """The image generator."""
        return self.image_generator or init_image_generator(context.generator, context.generator_options)

    def memory(self, context: GemsContext, runtime: Runtime[GemsContext]) -> BaseStore | None:
        """Where trajectories are kept: the parent's store, else the given one, else the user's; None if off."""
        if not context.memory:
            return None
        if runtime.store or self.store:
            return runtime.store or self.store
        where = memory_location(context)
        return self._store_of(where) if self.embedder else _own_store(where, context.embedder)

    @cached_property
    def _store_of(self) -> Callable[[str | None], BaseStore]:
        """Opens a store for the embedder that was given, each once."""
        assert self.embedder is not None
        return cache(partial(open_store, embedder=self.embedder))

    def images(self, context: GemsContext) -> ImageStore:
        """Where images are kept."""
        return self.image_store or open_images(context.images_url)

    def skills(self, context: GemsContext) -> SkillLibrary:
        """All the skills that are found."""
        return load_skills(context.skills_dir, builtin=context.builtin_skills)

    def offered_skills(self, context: GemsContext, wish: str) -> list[Skill]:
        """Those that the planner is offered for a wish."""
        skills = [s for name, s in self.skills(context).skills.items() if name not in context.without_skills]
        return offer(skills, wish, lambda: self.embedder or init_embedder(context.embedder))


@cache
def _own_store(where: str | None, embedder: str) -> BaseStore:
    return open_store(where, init_embedder(embedder))
