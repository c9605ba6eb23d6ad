"""What a record leaves out of a run's settings, since only the operator gives it, and how a repetition gets it back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from gems.authority import MODEL, operator_marks, operator_values, option_of, without_login
from gems.errors import InputError
from gems.graph.context import ROLES, GemsContext
from gems.options import ChatOptions, GeneratorOptions

__all__ = ["adopt", "check_complete", "named", "operator_settings"]


def operator_settings(context: GemsContext) -> tuple[str, ...]:
    """The paths of the settings that a record leaves out, but that a run cannot be repeated without.

    Model names are in the record. A key can come from the environment instead.
    """
    values = operator_values(context)
    return tuple(v.path for v in values if v.kind != MODEL and not v.path.endswith(".api_key"))


def adopt(context: GemsContext, operator: GemsContext) -> GemsContext:
    """Settings that were read from data, with all that only the operator gives taken from the operator's settings.

    Model names stay, except that one whose address has a login in it takes the place of the same without.
    """
    names = {
        name: getattr(operator, name)
        for name in ("mllm", "generator", "embedder", *ROLES)
        if without_login(getattr(operator, name) or "") == getattr(context, name)
    }
    options = {
        name: getattr(context, name).model_copy(update=_operators_own(getattr(operator, name)))
        for name in ("chat_options", "generator_options")
    }
    by_role: dict[str, Any] = {
        role: (getattr(context.role_options, role) or ChatOptions()).model_copy(update=own)
        for role in ROLES
        if (settings := getattr(operator.role_options, role)) and (own := _operators_own(settings))
    }
    options["role_options"] = context.role_options.model_copy(update=by_role)
    update = {**names, **options, **_operators_own(operator)}
    return context.model_copy(update=update).with_authority(operator.authority)


def check_complete(context: GemsContext, paths: Iterable[str], run: str) -> None:
    """Check that all settings that a record left out were given again.

    Args:
        context: The settings, with the operator's.
        paths: The settings that the record left out, see ``operator_settings``.
        run: Names the run in the error.

    Raises:
        InputError: Some were not given.
    """
    present = set(operator_settings(context))
    if missing := [named(path) for path in paths if path not in present]:
        pronoun = "it" if len(missing) == 1 else "them"
        raise InputError(f"{run} was made with {', '.join(missing)}, which no record keeps: give {pronoun} again")


def named(path: str) -> str:
    """A setting that only the operator gives, as the command line gives it."""
    group, _, name = path.rpartition(".")
    models: dict[str, type[BaseModel]] = {
        "": GemsContext,
        "chat_options": ChatOptions,
        "generator_options": GeneratorOptions,
        **{f"role_options.{role}": ChatOptions for role in ROLES},
    }
    mark = operator_marks(models[group]).get(name) if group in models else None
    return option_of(path, mark) if mark else path  # the record may name what does not exist


def _operators_own(settings: BaseModel) -> dict[str, Any]:
    """The values in these settings that a record leaves out, and that only the operator gives."""
    marks = {name: mark for name, mark in operator_marks(type(settings)).items() if mark.kind != MODEL}
    return {name: value for name, mark in marks.items() if mark.applies(value := getattr(settings, name))}
