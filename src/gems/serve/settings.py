"""How the service is run, and what one request may ask for."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Optional, Self

from pydantic import BaseModel, ConfigDict, Field, create_model

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Budget
from gems.nodes.intake import MAX_PROMPT_LENGTH

__all__ = ["RunSettings", "ServiceSettings", "context_of", "images_of", "is_loopback"]

OPEN_TO_REQUESTS: Final = (
    "max_rounds",
    "candidates",
    "seed",
    "patience",
    "budget",
    "plan",
    "skills",
    "memory",
    "memories",
    "reuse",
    "review",
)
"""Fields of ``GemsContext`` that a request may set. Models, addresses and folders are the operator's alone: a request
that names a server would have this machine call it, with the operator's keys."""


class ServiceSettings(BaseModel):
    """What the operator decides."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    context: GemsContext = Field(default_factory=GemsContext)
    """Models, places and the defaults of a run."""
    home: Path
    """Holds the runs, their checkpoints, and each user's images."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen at; 0 takes a free one."""
    concurrency: int = Field(default=2, ge=1, le=256)
    """Runs at work at once."""
    queue: int = Field(default=256, ge=0, le=100_000)
    """Runs that may wait for their turn; one more is refused."""
    max_images: int = Field(default=20, ge=1)
    """Most images that one run may make, whatever a request asks for."""
    max_prompt: int = Field(default=MAX_PROMPT_LENGTH, ge=1, le=MAX_PROMPT_LENGTH)
    """Characters."""
    max_body: int = Field(default=64 * 1024, ge=1024)
    """Bytes of a request."""
    keys: Path | None = None
    """A TOML file of API keys."""
    open: bool = False
    """Listen beyond loopback without a key."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the service from a browser."""
    served_names: tuple[str, ...] = ("gems",)
    """Names of the model that requests may give."""
    grace: float = Field(default=30, ge=0)
    """Seconds that runs at work get to finish when the service is told to stop."""
    link_seconds: int = Field(default=3600, ge=1)
    """How long the address of an image works."""

    def check_address(self) -> Self:
        """Be sure that nobody is let in by accident.

        Raises:
            InputError: It would listen beyond this machine without a key.
        """
        if self.keys is None and not self.open and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host} lets others in, and there is no API key: make one with 'gems new-key NAME' and "
                "give --keys, or say --open if everybody may spend what this costs"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _fields() -> dict[str, Any]:
    """Those of the context, with their bounds; null is the service's own, since clients fill in what is left out."""
    fields = {name: GemsContext.model_fields[name] for name in OPEN_TO_REQUESTS}
    return {
        name: (
            Optional[Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation],  # noqa: UP045
            Field(default=None, title=info.title, description=info.description),
        )
        for name, info in fields.items()
    }


RunSettings: type[BaseModel] = create_model(
    "RunSettings", __base__=_Request, __doc__="Settings of one run.", **_fields()
)
"""What a request may set; see ``GemsContext``."""


def context_of(settings: ServiceSettings, user: str, given: Mapping[str, Any]) -> GemsContext:
    """The settings of a user's run: the operator's, with what was asked for, in the user's own places.

    Args:
        settings: The service's.
        user: Whose run it is.
        given: ``asked``, fields of ``RunSettings``; ``budget``, where the user's day leaves less.

    Raises:
        InputError: A value cannot be used.
    """
    own = settings.context
    asked = RunSettings.model_validate(given.get("asked") or {})
    wanted = {name: value for name, value in asked if value is not None}
    # What the operator has switched off stays off.
    wanted |= {name: False for name in ("memory", "skills") if not getattr(own, name)}
    context = own.model_copy(update={**wanted, "user": user, "images_url": images_of(settings, user)})
    budget = Budget.model_validate(given.get("budget") or context.budget.model_dump())
    most = min(budget.images or settings.max_images, settings.max_images)
    return context.model_copy(update={"budget": budget.model_copy(update={"images": most})})


def images_of(settings: ServiceSettings, user: str) -> str:
    """Where a user's images lie: nobody else's request looks there."""
    root = settings.context.images_url or str(settings.home / "images")
    return f"{root.rstrip('/')}/{user}"
