"""The settings of a run: one pydantic model, every field with the title, description and bounds that Studio shows."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_serializer,
)

from gems.authority import (
    MODEL,
    NO_AUTHORITY,
    Authority,
    OperatorOnly,
    names_more_than_a_model,
    operator_values,
    without_login,
)
from gems.default_models import CHAT_MODEL, GENERATOR
from gems.errors import InputError
from gems.graph.budget import MAX_PROMPTS, Budget
from gems.options import ChatOptions, GeneratorOptions, RoleOptions
from gems.seeds import MAX_SEED

__all__ = [
    "ROLES",
    "GemsContext",
    "OpenToRequests",
    "Role",
    "fault_of",
    "open_settings",
    "refuse_misspelt",
    "refuse_unknown",
    "similar_setting",
]

MEMORY_LIMIT: Final = 10_000
"""Experiences, and runs, that are kept for each user by default."""

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


def _model(option: str) -> OperatorOnly:
    """Marks a model's name: some hold code, an address or a folder."""
    return OperatorOnly(option, kind=MODEL, applies=names_more_than_a_model)


def _chat_model_of(role: Role) -> Any:
    description = f"Another chat model for the {role}. Empty: the one above."
    return Field(default=None, title=role.capitalize(), description=description)


_LIMIT: Final = OperatorOnly("memory_limit to build_graph(settings=...)", applies=lambda limit: limit != MEMORY_LIMIT)


class _Spelled(BaseModel):
    """Refuses a misspelt setting that a program gives to ``GemsContext(...)``."""

    if not TYPE_CHECKING:  # type checkers know the fields, and the types of their values

        def __new__(cls, *_: object, **values: Any) -> Self:
            # Not __init__, which pydantic calls for a parent's own fields too.
            if cls is GemsContext:
                refuse_misspelt(values)
            return super().__new__(cls)


class GemsContext(_Spelled):
    """The settings of one run. Models are given by name; ``build_graph`` takes live objects instead.

    Addresses, keys, folders and code count on the command line, in ``build_graph(settings=...)`` and in a context made
    with ``as_operator``. Elsewhere they are refused, and they are never written down; see ``gems.authority``.
    """

    # A parent graph passes on its own context: fields that are not ours are ignored.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, allow_inf_nan=False)

    mllm: Annotated[str, _model("--mllm")] = Field(
        default=CHAT_MODEL,
        json_schema_extra={"default": without_login(CHAT_MODEL)},
        min_length=1,
        title="Vision chat model",
        description="Plans, decomposes, verifies and refines: open, pocket, transformers:FOLDER_OR_REPO[@REVISION], "
        "PROVIDER:MODEL for any init_chat_model name (openai:gpt-5) or, where the operator allows it, your own "
        "python:MODULE:FACTORY.",
    )
    generator: Annotated[str, _model("--generator")] = Field(
        default=GENERATOR,
        json_schema_extra={"default": without_login(GENERATOR)},
        min_length=1,
        title="Image generator",
        description="Makes the images: open, pocket, pocket-large, diffusers:FOLDER_OR_REPO[@REVISION], openai:MODEL, "
        "http:URL, comfyui:URL or, where the operator allows it, your own python:MODULE:FACTORY.",
    )
    planner: Annotated[str | None, _model("--planner")] = _chat_model_of("planner")
    decomposer: Annotated[str | None, _model("--decomposer")] = _chat_model_of("decomposer")
    verifier: Annotated[str | None, _model("--verifier")] = Field(
        default=None, title="Verifier", description="Another vision chat model for the verifier. Empty: the one above."
    )
    refiner: Annotated[str | None, _model("--refiner")] = _chat_model_of("refiner")
    chat_options: ChatOptions = Field(
        default_factory=ChatOptions, title="Chat options", description="How the chat models are called."
    )
    role_options: RoleOptions = Field(
        default_factory=RoleOptions, title="Options by role", description="Chat options of single roles."
    )
    generator_options: GeneratorOptions = Field(
        default_factory=GeneratorOptions, title="Generator options", description="How the image generator is run."
    )
    inspectors: tuple[str, ...] = Field(
        default=("ocr",),
        title="Inspectors",
        description='Tools that help the verifier, if they are installed: "ocr" reads text.',
    )
    embedder: Annotated[str, _model("--embedder")] = Field(
        default="minilm",
        min_length=1,
        title="Embedder",
        description='Embeds prompts for memory retrieval. "minilm" comes with the package and works offline.',
    )
    max_rounds: _Open[int] = Field(
        default=5, ge=1, le=50, title="Rounds", description="Maximum number of rounds: generate, verify, refine."
    )
    candidates: _Open[int] = Field(default=1, ge=1, le=16, title="Candidates", description="Images per round.")
    proposals: _Open[int] = Field(
        default=1, ge=1, le=MAX_PROMPTS, title="Proposals", description="Prompts per round, which share its candidates."
    )
    verify_concurrency: _Open[int] = Field(
        default=1, ge=1, le=16, title="Verify concurrency", description="Images that are verified at the same time."
    )
    seed: _Open[int | None] = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        title="Seed",
        description="Seed of the first image; the others follow from it. Empty: random, and recorded.",
    )
    patience: _Open[int] = Field(
        default=4, ge=1, le=50, title="Patience", description="Stop after so many rounds without a better image."
    )
    budget: _Open[Budget] = Field(
        default_factory=Budget, title="Budget", description="Limits on what the run may spend."
    )
    review: _Open[Literal["never", "end", "rounds"]] = Field(
        default="never",
        title="Review",
        description="When to ask a person: before the run ends, or after every round. Needs a checkpointer.",
    )
    plan: _Open[bool] = Field(
        default=True, title="Plan", description="Let the planner write the first draft. Off: draw the prompt as it is."
    )
    skills: _Open[bool] = Field(default=True, title="Skills", description="Offer the skills to the planner.")
    memory_url: Annotated[SecretStr | None, OperatorOnly("--memory LOCATION (or GEMS_MEMORY)")] = Field(
        default=None,
        exclude=True,
        title="Memory store",
        description="A folder, or postgresql://USER@HOST/DATABASE. Empty: GEMS_MEMORY, then $GEMS_HOME/memory. A "
        "server's own store comes first.",
    )
    images_url: Annotated[str | None, OperatorOnly("--images LOCATION (or GEMS_IMAGES)")] = Field(
        default=None,
        exclude=True,
        title="Image store",
        description="A folder or any fsspec URL, such as s3://BUCKET/FOLDER. Empty: GEMS_IMAGES, then "
        "$GEMS_HOME/images.",
    )
    memory: _Open[bool] = Field(
        default=True, title="Memory", description="Learn from earlier runs and remember this one."
    )
    memories: _Open[int] = Field(
        default=3, ge=0, le=20, title="Memories", description="Maximum number of experiences to retrieve."
    )
    memory_tokens: int = Field(
        default=600,
        ge=0,
        le=20_000,
        title="Memory tokens",
        description="Approximate limit on the tokens that retrieved experiences take up in a chat model's prompt.",
    )
    memory_limit: Annotated[int | None, _LIMIT] = Field(
        default=MEMORY_LIMIT,
        exclude=True,
        ge=1,
        title="Memory limit",
        description="About how many experiences and runs are kept per user; the least helpful go. Empty: no limit.",
    )
    memory_days: Annotated[float | None, OperatorOnly("memory_days to build_graph(settings=...)")] = Field(
        default=None,
        exclude=True,
        gt=0,
        title="Memory days",
        description="Forget records older than this many days. Empty: never.",
    )
    reuse: _Open[bool] = Field(
        default=False,
        title="Reuse",
        description="Return the image of an earlier run that solved the same prompt with the same models and settings.",
    )
    user: str = Field(
        default="default",
        pattern=r"^[^\s\x00-\x1f]{1,128}$",
        title="User",
        description="Namespace of the memory: users never see each other's runs.",
    )
    builtin_skills: bool = Field(
        default=True, title="Built-in skills", description="Also offer the skills that come with the package."
    )
    skills_dir: Annotated[str | None, OperatorOnly("--skills-dir FOLDER")] = Field(
        default=None,
        exclude=True,
        title="Skills folder",
        description="A folder of SKILL.md folders; several with the system's path separator between them. Empty: "
        "./skills, if it exists. Learned skills and ~/.config/gems/skills are always searched.",
    )
    without_skills: tuple[str, ...] = Field(
        default=(), title="Without skills", description="Names of skills not to offer."
    )
    skill_tokens: int = Field(
        default=6_000,
        ge=0,
        le=100_000,
        title="Skill tokens",
        description="Approximate limit on the tokens that skill texts take up in the planner's prompt.",
    )

    _authority: Authority = PrivateAttr(default=NO_AUTHORITY)

    @property
    def authority(self) -> Authority:
        """What the operator allows: no setting, never written down, never read from data."""
        return self._authority

    def with_authority(self, authority: Authority) -> GemsContext:
        """A copy with this authority."""
        context = self.model_copy()
        context._authority = authority
        return context

    def as_operator(self) -> GemsContext:
        """A copy with the operator's authority, for settings that you wrote: all that they name may be used."""
        return self.with_authority(self.authority.granting(operator_values(self)))

    def check_authority(self, unused: Collection[str] = ()) -> None:
        """Check that the operator gave what only the operator may give.

        Args:
            unused: Settings in whose place an object is used.

        Raises:
            InputError: The operator did not give one of the values.
        """
        self.authority.check(v for v in operator_values(self) if v.path.partition(".")[0] not in unused)

    @field_serializer("mllm", "generator", "embedder", *ROLES)
    def _without_login(self, name: str | None) -> str | None:
        return without_login(name) if name else name

    @property
    def images_per_round(self) -> int:
        """Images per round: the candidates, and at least one for each proposal."""
        return max(self.candidates, self.proposals)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the image generator and of all chat models."""
        return (self.generator, self.mllm, *(self.chat_model(role) for role in ROLES))

    def chat_model(self, role: Role) -> str:
        """The name of a role's chat model."""
        return str(getattr(self, role) or self.mllm)

    def options_of(self, role: str) -> ChatOptions:
        """How a role's chat model is called; for a name that is no role, how all are."""
        return self.role_options.of(role, self.chat_options) if role in ROLES else self.chat_options

    @classmethod
    def exactly(cls, settings: Mapping[str, Any]) -> GemsContext:
        """The settings in a mapping that holds nothing else.

        Raises:
            InputError: A name is unknown, or a value is of the wrong type or out of bounds.
        """
        if not isinstance(settings, Mapping):
            raise InputError(f"settings is {type(settings).__name__}; give names and values, or a GemsContext")
        for name in settings:
            refuse_unknown(name, cls.model_fields)
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise InputError(f"the setting {fault_of(error)}") from None

    @classmethod
    def resolve(cls, context: object) -> GemsContext:
        """The settings in the context of a parent graph or a server.

        ``None`` gives the defaults. A mapping or an object of another class gives the fields that it shares with this
        class, so a parent's own context object can carry our settings; all others are its own, whatever their names
        resemble. A parent whose names collide puts ours, and nothing else, under ``gems``; then only that is read.

        Raises:
            InputError: A value is of the wrong type or out of bounds, or a name under ``gems`` is unknown.
        """
        if context is None or isinstance(context, cls):
            return cls() if context is None else context
        values = _fields_in(context)
        if "gems" in values:
            own = values["gems"]
            if isinstance(own, Mapping):
                return cls.exactly(own)
            if own is not None and not _fields_in(own):
                raise InputError(f"the context's gems is {type(own).__name__}; give settings by name, or a GemsContext")
            return cls.resolve(own)
        try:
            return cls.model_validate({name: values[name] for name in cls.model_fields if name in values})
        except ValidationError as error:
            raise InputError(f"the context's {fault_of(error)}") from None


def open_settings() -> list[str]:
    """The names of the settings that requests may give."""
    return [
        name
        for name, field in GemsContext.model_fields.items()
        if any(isinstance(mark, OpenToRequests) for mark in field.metadata)
    ]


def similar_setting(name: object, names: Collection[str]) -> str | None:
    """The setting that an unknown name resembles, as a misspelling or another style (``maxRounds``) does."""
    plain_names = {_plain(setting): setting for setting in names}
    matches = difflib.get_close_matches(_plain(name), plain_names, n=1, cutoff=0.85)
    return plain_names[matches[0]] if matches else None


def _plain(name: object) -> str:
    """A name without the differences between styles of writing."""
    return "".join(character for character in str(name).lower() if character.isalnum())


def refuse_unknown(name: object, names: Collection[str]) -> None:
    """Refuse a name that is none of these settings.

    Raises:
        InputError: It is not among them; a similar one is suggested.
    """
    if name not in names:
        similar = similar_setting(name, names)
        advice = f"did you mean {similar!r}?" if similar else f"choose from: {', '.join(names)}"
        raise InputError(f"unknown setting {name!r}: {advice}")


def refuse_misspelt(names: Iterable[object]) -> None:
    """Refuse names that resemble a setting. Others may belong to other parts of a program.

    Raises:
        InputError: A name is no setting, and resembles one.
    """
    for name in names:
        if name not in GemsContext.model_fields and similar_setting(name, GemsContext.model_fields):
            refuse_unknown(name, GemsContext.model_fields)


def fault_of(error: ValidationError) -> str:
    """The first fault of settings on one line, with its value unless that could be a secret."""
    first = error.errors(include_url=False)[0]
    value = f" is {first['input']!r}" if first["loc"] and first["loc"][0] in open_settings() else ""
    return f"{'.'.join(map(str, first['loc']))}{value}: {first['msg'].removeprefix('Value error, ')}"


def _fields_in(context: object) -> Mapping[str, Any]:
    """The fields of a parent's context: a mapping, or an object of any class; nothing if it has no fields."""
    if isinstance(context, Mapping):
        return context
    slots = [name for kind in type(context).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [*getattr(context, "__dict__", ()), *slots, *getattr(context, "_fields", ())]
    return {name: getattr(context, name) for name in names if hasattr(context, name)}
