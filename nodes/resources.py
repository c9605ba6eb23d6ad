"""The models, stores and skills that the nodes use: objects given to ``build_graph``, or those the context names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Protocol

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore

from gems.graph.context import ROLES, GemsContext, Role
from gems.graph.state import GemsState, Kind
from gems.memory.embedder import init_embedder
from gems.memory.image_store import ImageStore, open_images
from gems.memory.opening import memory_location, open_store
from gems.models.generators import ImageGenerator
from gems.models.inspectors import INSPECTORS, Inspector
from gems.models.registry import init_image_generator, init_inspector, init_mllm
from gems.skills.catalogue import offer, suits
from gems.skills.format import Skill
from gems.skills.loader import SkillLibrary, load_skills
from gems.skills.snapshots import skills_in, take_snapshot

__all__ = ["Node", "Resources"]


class Node(Protocol):
    """A graph node: reads the state, returns the keys that it changes."""

    def __call__(self, state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        """Do the node's work."""
        ...


@dataclass(frozen=True)
class Resources:
    """Resolves models, stores and skills. An object given here takes precedence over a name in the context."""

    mllm: BaseChatModel | None = None
    image_generator: ImageGenerator | None = None
    embedder: Embeddings | None = None
    store: BaseStore | None = None
    image_store: ImageStore | None = None
    own_inspectors: tuple[Inspector, ...] = ()
    settings: GemsContext | None = None
    """Settings that are fixed for the graph, whatever the run's context says."""
    thumbnails: int = 0

    def context(self, runtime: Runtime[GemsContext]) -> GemsContext:
        """The run's settings.

        Raises:
            InputError: A value cannot be used, or names code that the operator has not allowed.
        """
        context = GemsContext.resolve(runtime.context)
        if self.settings is not None:
            fixed = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
            authority = context.authority.allowing(self.settings.authority.code)
            context = context.model_copy(update=fixed).with_authority(authority)
        if self.image_generator is None:
            context.authority.check(context.generator)
        for role in ROLES if self.mllm is None else ():
            context.authority.check(context.chat_model(role))
        return context

    def chat(self, context: GemsContext, role: Role) -> BaseChatModel:
        """The chat model of a role."""
        return self.mllm or init_mllm(context.chat_model(role), context.chat_options, context.authority)

    def inspectors(self, context: GemsContext, kinds: AbstractSet[Kind]) -> list[Inspector]:
        """The inspectors for these kinds of requirements: the graph's own, and those named that are installed.

        A named inspector is imported only if a requirement is of one of its kinds.
        """
        names = (name for name in context.inspectors if name not in INSPECTORS or INSPECTORS[name].kinds & kinds)
        by_name = (init_inspector(name) for name in names)
        return [inspector for inspector in (*self.own_inspectors, *by_name) if inspector and inspector.kinds & kinds]

    def generator(self, context: GemsContext) -> ImageGenerator:
        """The image generator."""
        return self.image_generator or init_image_generator(
            context.generator, context.generator_options, context.authority
        )

    def memory(self, context: GemsContext, runtime: Runtime[GemsContext]) -> BaseStore | None:
        """The store of trajectories: of the parent graph, this graph or the user, in that order; None if it is off."""
        if not context.memory:
            return None
        if runtime.store or self.store:
            return runtime.store or self.store
        url = memory_location(context)
        return self._open_store(url) if self.embedder else _user_store(url, context.embedder)

    @cached_property
    def _open_store(self) -> Callable[[str | None], BaseStore]:
        """Opens each store once, with the graph's own embedder."""
        assert self.embedder is not None
        return cache(partial(open_store, embedder=self.embedder))

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
        return take_snapshot(offer(skills, prompt, lambda: self.embedder or init_embedder(context.embedder)))

    def offered_skills(self, context: GemsContext, snapshot: Mapping[str, str]) -> dict[str, Skill]:
        """The skills of a run's snapshot, by name."""
        return skills_in(snapshot, lambda: self.skills(context).skills)


@cache
def _user_store(url: str | None, embedder: str) -> BaseStore:
    return open_store(url, init_embedder(embedder))
