"""The settings of a run, as LangGraph Studio shows them: one pydantic model, every field with title and bounds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_serializer, model_validator

from gems.database import without_password
from gems.errors import InputError
from gems.graph.state import Budget
from gems.options import ChatOptions, GeneratorOptions
from gems.seeds import MAX_SEED

__all__ = ["ROLES", "GemsContext", "OpenToRequests", "Role"]

Role = Literal["planner", "decomposer", "verifier", "refiner"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)


@dataclass(frozen=True, slots=True)
class OpenToRequests:
    """Marks a setting that a request to the service may give.

    Models, addresses and folders stay the operator's alone: a request that names a server would make this machine call
    it with the operator's keys.
    """


_T = TypeVar("_T")
_Open: TypeAlias = Annotated[_T, OpenToRequests()]


class GemsContext(BaseModel):
    """Settings of one run. Models are given by name; live objects can be handed to ``build_graph`` instead."""

    # A parent graph hands its own context on to us: what is not ours is not our business.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    mllm: str = Field(
        default="pocket",
        min_length=1,
        title="Vision chat model",
        description="Plans, decomposes, verifies and refines: pocket, any init_chat_model name (openai:gpt-5), or "
        "transformers:FOLDER_OR_REPO.",
    )
    generator: str = Field(
        default="pocket",
        min_length=1,
        title="Image generator",
        description="Makes the images: pocket, pocket-large, diffusers:FOLDER_OR_REPO, openai:MODEL, http:URL or "
        "comfyui:URL.",
    )
    planner: str | None = Field(
        default=None, title="Planner", description="Another chat model for the planner. Empty: the one above."
    )
    decomposer: str | None = Field(
        default=None, title="Decomposer", description="Another chat model for the decomposer. Empty: the one above."
    )
    verifier: str | None = Field(
        default=None, title="Verifier", description="Another vision chat model for the verifier. Empty: the one above."
    )
    refiner: str | None = Field(
        default=None, title="Refiner", description="Another chat model for the refiner. Empty: the one above."
    )
    chat_options: ChatOptions = Field(
        default_factory=ChatOptions, title="Chat options", description="How the chat models are called."
    )
    generator_options: GeneratorOptions = Field(
        default_factory=GeneratorOptions, title="Generator options", description="How the image generator is run."
    )
    inspectors: tuple[str, ...] = Field(
        default=("ocr",),
        title="Inspectors",
        description='Tools that help the verifier, where they are installed: "ocr" reads written words.',
    )
    embedder: str = Field(
        default="minilm",
        min_length=1,
        title="Embedder",
        description='Embeds prompts for memory retrieval. "minilm" is offline and comes with the package.',
    )
    max_rounds: _Open[int] = Field(
        default=5, ge=1, le=50, title="Rounds", description="Most rounds of generate, verify and refine."
    )
    candidates: _Open[int] = Field(default=1, ge=1, le=16, title="Candidates", description="Images made in each round.")
    seed: _Open[int | None] = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        title="Seed",
        description="Seed of the first image; later ones follow from it. Empty: drawn at random and recorded.",
    )
    patience: _Open[int] = Field(
        default=4,
        ge=1,
        le=50,
        title="Patience",
        description="Stop as stalled after this many rounds in a row that brought no better image.",
    )
    budget: _Open[Budget] = Field(
        default_factory=Budget, title="Budget", description="Limits on what the run may spend."
    )
    review: _Open[Literal["never", "end", "rounds"]] = Field(
        default="never",
        title="Review",
        description="When a person is asked: before the run ends, or after every round. Needs a checkpointer.",
    )
    plan: _Open[bool] = Field(
        default=True,
        title="Plan",
        description="Let the planner write the first prompt. Without, the user's own words are drawn first.",
    )
    skills: _Open[bool] = Field(default=True, title="Skills", description="Offer the skills to the planner.")
    memory_url: SecretStr | None = Field(
        default=None,
        title="Memory store",
        description="A folder, or postgresql://USER@HOST/DATABASE. Empty: GEMS_MEMORY, then $GEMS_HOME/memory. A "
        "server's own store comes first.",
    )
    images_url: str | None = Field(
        default=None,
        title="Image store",
        description="A folder or any fsspec URL, such as s3://BUCKET/FOLDER. Empty: GEMS_IMAGES, then "
        "$GEMS_HOME/images.",
    )
    memory: _Open[bool] = Field(
        default=True, title="Memory", description="Retrieve from past runs and remember this one."
    )
    memories: _Open[int] = Field(default=3, ge=0, le=20, title="Memories", description="Most experiences to retrieve.")
    memory_tokens: int = Field(
        default=600,
        ge=0,
        le=20_000,
        title="Memory tokens",
        description="Most tokens, about, that what is retrieved may take up in a chat model's prompt.",
    )
    memory_limit: int | None = Field(
        default=10_000,
        ge=1,
        title="Memory limit",
        description="About how many experiences, and runs, are kept per user: what helped least goes first; looked "
        "after at one run in 32. Empty: no limit.",
    )
    memory_days: float | None = Field(
        default=None, gt=0, title="Memory days", description="Forget what was last written so long ago. Empty: never."
    )
    reuse: _Open[bool] = Field(
        default=False,
        title="Reuse",
        description="Where just this prompt was solved before, with the same models and settings, give that image.",
    )
    user: str = Field(
        default="default",
        pattern=r"^[^\s\x00-\x1f]{1,128}$",
        title="User",
        description="Namespace of the memory: one user's runs are never shown to another.",
    )
    builtin_skills: bool = Field(
        default=True, title="Built-in skills", description="Offer the skills that come with the package too."
    )
    skills_dir: str | None = Field(
        default=None,
        title="Skills folder",
        description="A folder of SKILL.md folders; several with the system's path separator between them. Empty: "
        "./skills, where it is there. Learned skills and ~/.config/gems/skills are always looked into.",
    )
    without_skills: tuple[str, ...] = Field(
        default=(), title="Without skills", description="Names of skills that are not offered."
    )
    skill_tokens: int = Field(
        default=6_000,
        ge=0,
        le=100_000,
        title="Skill tokens",
        description="Most tokens, about, that the texts of skills may take up in the planner's prompt.",
    )

    @field_serializer("memory_url", when_used="json-unless-none")
    def _without_password(self, url: SecretStr) -> str:
        """What is written down: a run that is gone on with finds its database, and the password in PGPASSWORD."""
        return without_password(url.get_secret_value())

    @model_validator(mode="before")
    @classmethod
    def _refuse_misspelt_settings(cls, values: Any) -> Any:
        """A parent's own fields pass; one that looks like ours is taken for a slip of the pen."""
        for name in values if isinstance(values, dict) else ():
            near = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.85)
            if name not in cls.model_fields and near:
                raise ValueError(f"unknown setting {name!r}: did you mean {near[0]!r}?")
        return values

    def chat_model(self, role: Role) -> str:
        """The name of a role's chat model."""
        name: str | None = getattr(self, role)
        return name or self.mllm

    @classmethod
    def exactly(cls, settings: Mapping[str, Any]) -> GemsContext:
        """The settings in a mapping that holds nothing besides.

        Raises:
            InputError: A name is not known, a value is of the wrong type or out of its bounds.
        """
        try:
            context = cls.model_validate(dict(settings))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"the setting {where}: {first['msg']}" if where else first["msg"]) from None
        if strange := sorted(set(settings) - set(cls.model_fields)):
            raise InputError(f"there is no setting {strange[0]!r}; there are {', '.join(cls.model_fields)}")
        return context

    @classmethod
    def resolve(cls, context: object) -> GemsContext:
        """The settings in whatever a parent graph or a server handed over.

        ``None`` gives the defaults; a mapping or an object of another class gives the fields that it has in common
        with this one, so that a parent's own context object can carry ours. Where names collide, a parent puts ours
        under ``gems``, and nothing else is looked at.

        Raises:
            InputError: A value is of the wrong type or out of its bounds.
        """
        if isinstance(context, cls):
            return context
        if context is None:
            return cls()
        values: Mapping[str, Any] = context if isinstance(context, Mapping) else vars(context)
        if "gems" in values:
            return cls.resolve(values["gems"])
        place = values.get("memory_url")
        if isinstance(place, str) and without_password(place) != place:
            # As it came, LangGraph and its server write it into checkpoints and traces.
            raise InputError("leave the password out of memory_url: PGPASSWORD or GEMS_MEMORY can hold it")
        try:
            return cls.model_validate({name: values[name] for name in cls.model_fields if name in values})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            given = "" if where == "memory_url" else f" is {first['input']!r}"
            raise InputError(f"the context's {where}{given}: {first['msg']}") from None
