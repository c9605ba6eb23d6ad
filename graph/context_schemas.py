"""The context schemas of compiled graphs: what a caller gives to a run of its own, and how a fault in it is told.

LangGraph makes an object of the schema's class from the context that a caller passes to ``invoke`` and its siblings. A
graph that runs inside another one inherits the parent's context instead; ``GemsContext.resolve`` reads that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from langchain_core.runnables.config import var_child_runnable_config
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from gems.errors import InputError
from gems.graph.context import GemsContext, fault_of, refuse_misspelt

__all__ = ["RunContext", "TrustedContext", "client_schema"]


class RunContext(GemsContext):
    """The context of ``build_graph``'s graphs. A run of its own refuses a misspelt setting.

    A node of another graph may pass that graph's context on, whose other fields mean nothing here.
    """

    model_config = ConfigDict(title="GemsContext")

    def __init__(self, **values: Any) -> None:
        if "gems" in values:
            own = GemsContext.resolve(values)
            super().__init__(**{name: getattr(own, name) for name in own.model_fields_set})
            self._authority = own.authority
            return
        if not _in_a_node():
            refuse_misspelt(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(f"the context's {fault_of(error)}") from None


class TrustedContext(GemsContext):
    """The context of a server whose clients are the operator: every setting counts, with the operator's authority."""

    model_config = ConfigDict(title="GemsContext")

    def __init__(self, **values: Any) -> None:
        super().__init__(**_without_nulls(values))
        self._authority = self.as_operator().authority


class _ClientContext(BaseModel):
    """What clients of a server may set for a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def __init__(self, **values: Any) -> None:
        super().__init__(**_without_nulls(values))


def client_schema(names: Collection[str]) -> type[BaseModel]:
    """The context schema of a server whose clients may give these settings and no others."""
    # Each field as it is in GemsContext: type, bounds, title, description and default.
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in GemsContext.model_fields.items() if name in names
    }
    return create_model("GemsContext", __base__=_ClientContext, __doc__="Settings of one run.", **fields)


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """A form sends every field, and null stands for one that was left empty."""
    return {name: value for name, value in values.items() if value is not None}


def _in_a_node() -> bool:
    """Whether this runs within a node of a LangGraph graph."""
    config = var_child_runnable_config.get() or {}
    return "checkpoint_ns" in config.get("configurable", {})
