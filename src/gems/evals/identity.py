"""What an evaluation is bound to: everything that decides a result, so that no report mixes results of two kinds.

That is the prompts, seeds and settings, the contents of the skills, and the fingerprints of the models, which cover
their weights and calibration. The user's memory is not part of it, because no arm reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gems.errors import InputError
from gems.files import read_regular, write_atomically
from gems.graph.context import GemsContext
from gems.json_text import parse_json, strict_json
from gems.runs.record import model_records
from gems.runs.same_settings import changed_settings
from gems.skills.loader import load_skills
from gems.skills.snapshots import digest_of

__all__ = ["bind_folder", "differences", "mark_as_mixed", "model_identities", "skill_digests"]

_MIXED: Final = "mixed"
"""Key of the skills that changed while the evaluation ran."""


def skill_digests(context: GemsContext) -> dict[str, str]:
    """The SHA-256 of each skill that the planner can be offered, by name; see ``gems.skills.snapshots``.

    Raises:
        InputError: A folder of the settings' skills does not exist.
    """
    library = load_skills(context.skills_dir, builtin=context.builtin_skills)
    if not context.skills:
        return {}
    return {name: digest_of(s) for name, s in sorted(library.skills.items()) if name not in context.without_skills}


def model_identities(context: GemsContext) -> dict[str, dict[str, str]]:
    """The name and the fingerprint of each model of the settings, by role.

    Raises:
        InputError: A model's name is unknown, or its package or API key is missing.
        BackendError: A model's weights are missing.
    """
    return {role: asdict(model) for role, model in model_records(context, load=False).items()}


def bind_folder(out: Path, identity: Mapping[str, Any], context: GemsContext) -> None:
    """Bind a folder to one evaluation, or check that it is bound to this one.

    Args:
        out: The folder.
        identity: What decides a result.
        context: The settings, which are in the identity as JSON.

    Raises:
        InputError: It holds another evaluation, or results that are mixed.
    """
    path = out / "eval.json"
    if path.exists():
        _check(out, _read(path), parse_json(strict_json(identity)), context)
    else:
        write_atomically(path, strict_json(identity, indent=1).encode())


def mark_as_mixed(out: Path, changes: str) -> None:
    """Note that results in the folder come from different skills: from now on, ``bind_folder`` refuses it."""
    path = out / "eval.json"
    write_atomically(path, strict_json({**_read(path), _MIXED: changes}, indent=1).encode())


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between two mappings: "counting is another, lamps is new, signs is gone"; empty if nothing."""
    parts = [f"{name} is {'another' if name in before else 'new'}" for name in now if before.get(name) != now[name]]
    return ", ".join([*parts, *(f"{name} is gone" for name in before if name not in now)])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_regular(path, within=path.parent))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be read; choose another folder with --out")
    return content


def _mapping(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _check(out: Path, earlier: dict[str, Any], identity: dict[str, Any], context: GemsContext) -> None:
    begin_another = "choose another folder with --out"
    if _MIXED in earlier:
        raise InputError(
            f"{out} holds results from before and after its skills changed ({earlier[_MIXED]}); {begin_another}"
        )
    changed_parts = [name for name, value in identity.items() if earlier.get(name) != value]
    if "settings" in changed_parts and not changed_settings(earlier.get("settings"), context):
        changed_parts.remove("settings")
    if not changed_parts:
        return
    if set(changed_parts) <= {"skills", "models"}:
        details = "; ".join(f"{name}: {differences(_mapping(earlier, name), identity[name])}" for name in changed_parts)
        raise InputError(
            f"{out} holds an evaluation with other {' and '.join(changed_parts)} ({details}); {begin_another}"
        )
    raise InputError(f"{out} holds an evaluation of other prompts or settings; {begin_another}")
