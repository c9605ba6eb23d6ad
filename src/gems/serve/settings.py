"""The service's settings, and the settings that a request may give for its run."""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import Annotated, Any, Final, Optional, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from gems.errors import InputError
from gems.graph.context import GemsContext, open_settings
from gems.graph.state import Budget, Prices
from gems.serve.keys import DayLimits
from gems.wording import MAX_PROMPT_LENGTH

__all__ = [
    "AcceptedSettings",
    "RunSettings",
    "ServiceSettings",
    "context_of",
    "images_url_of",
    "is_loopback",
    "lower_budget",
]

_ORIGIN: Final = re.compile(r"\*|[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]_-]+")
"""As browsers send it (RFC 6454): in lower case, without a path."""


class ServiceSettings(BaseModel):
    """The operator's settings of the service."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    context: GemsContext = Field(default_factory=GemsContext)
    """Models, storage locations and the defaults of a run."""
    home: Path
    """The folder of runs, checkpoints, and each user's images."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen at; 0 takes a free one."""
    concurrency: int = Field(default=2, ge=1, le=256)
    """Maximum number of runs in progress."""
    queue: int = Field(default=256, ge=0, le=100_000)
    """Maximum number of waiting runs. Further ones are refused."""
    queue_per_key: int | None = Field(default=None, ge=0, le=100_000)
    """Maximum number of one key's waiting runs. None: a quarter of ``queue``, or all of it without keys."""
    max_images: int = Field(default=20, ge=1)
    """The maximum number of images of one run, whatever a request asks for."""
    max_prompt: int = Field(default=MAX_PROMPT_LENGTH, ge=1, le=MAX_PROMPT_LENGTH)
    """Maximum length of a prompt, in characters."""
    max_body: int = Field(default=64 * 1024, ge=1024)
    """Maximum size of a request's body, in bytes."""
    keys: Path | None = None
    """A TOML file of API keys."""
    open: bool = False
    """Listen beyond this machine without a key."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other sites whose pages may call the service from a browser; ``*`` stands for all."""
    max_connections: int = Field(default=2048, ge=1)
    """Maximum number of open connections. Further ones are refused."""
    served_names: tuple[str, ...] = ("gems",)
    """Model names that requests may give."""
    grace: float = Field(default=30, ge=0)
    """Seconds that runs may take to finish when the service is stopped."""
    link_seconds: int = Field(default=3600, ge=1)
    """Seconds for which an image's address is valid."""
    keep_days: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Days after which a run that has ended is deleted, as by a client's DELETE. None: never."""

    @property
    def max_queued_per_key(self) -> int:
        """Maximum number of one key's waiting runs."""
        if self.queue_per_key is not None:
            return self.queue_per_key
        return self.queue if self.keys is None else math.ceil(self.queue / 4)

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin such as https://example.org, without a path, or *")
        return origins

    def check_address(self) -> Self:
        """Check that the service is not open to other machines by accident.

        Raises:
            InputError: It would listen beyond this machine without a key.
        """
        if self.keys is None and not self.open and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host} makes the service reachable from other machines, and there is no API key: create "
                "one with 'gems new-key NAME' and give --keys, or give --open if anyone may use it at your cost"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class _RequestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _open_fields() -> dict[str, Any]:
    """The fields of ``GemsContext`` that are open to requests, with their bounds.

    Null stands for the service's own value, because some clients send every field.
    """
    infos = {name: GemsContext.model_fields[name] for name in open_settings()}
    return {
        name: (
            Optional[Annotated[(info.annotation, *info.metadata)]],  # noqa: UP045
            Field(default=None, title=info.title, description=info.description),
        )
        for name, info in infos.items()
    }


RunSettings: type[BaseModel] = create_model(
    "RunSettings", __base__=_RequestModel, __doc__="Settings of one run.", **_open_fields()
)
"""What a request may set: the fields of ``GemsContext`` that are marked as ``OpenToRequests``."""


class AcceptedSettings(BaseModel):
    """What an accepted run differs in from the service's own settings, as the ledger keeps it."""

    model_config = ConfigDict(frozen=True)

    requested: RunSettings = Field(default_factory=RunSettings)
    """The settings in the request."""
    budget: Budget | None = None
    """The run's budget, within the operator's and what the user's day leaves."""
    day: DayLimits = DayLimits()
    """The limits of the user's day."""


def context_of(settings: ServiceSettings, user: str, accepted: AcceptedSettings) -> GemsContext:
    """The settings of a user's run, with the user's own memory and image store."""
    own = settings.context
    overrides = {name: value for name, value in accepted.requested if value is not None}
    # A request cannot turn on what the operator has turned off.
    overrides |= {name: False for name in ("memory", "skills") if not getattr(own, name)}
    context = own.model_copy(update={**overrides, "user": user, "images_url": images_url_of(settings, user)})
    budget = accepted.budget or lower_budget(own.budget, context.budget)
    max_images = min(budget.images or settings.max_images, settings.max_images)
    context = context.model_copy(update={"budget": budget.model_copy(update={"images": max_images})})
    return context.as_operator()  # a request sets none of what only the operator may give


def lower_budget(own: Budget, requested: Budget) -> Budget:
    """The lower of each limit. Prices are the operator's, if there are any."""
    limits = {}
    for name in Budget.model_fields.keys() - {"prices"}:
        values = [value for value in (getattr(own, name), getattr(requested, name)) if value is not None]
        limits[name] = min(values, default=None)
    return Budget(**limits, prices=own.prices if own.prices != Prices() else requested.prices)


def images_url_of(settings: ServiceSettings, user: str) -> str:
    """The location of a user's images. No other user's request reads it."""
    root = settings.context.images_url or str(settings.home / "images")
    return f"{root.rstrip('/')}/{user}"
