"""What a trial is about is written down when it begins: runs that are remembered meanwhile do not change it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from gems.errors import InputError
from gems.files import check_own_files, read_regular, write_atomically
from gems.json_text import parse_model, strict_json
from gems.learning.shelf import LearnedSkill
from gems.learning.trials import Runs, TrialSettings, count_held_out, held_out_prompts

__all__ = ["BegunTrial", "begin_trial", "has_begun"]

_FOLDER: Final = "gate"


class BegunTrial(BaseModel):
    """``gate/begun.json``: a trial that has begun."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)

    version: int
    """The skill's."""
    earlier: str
    """When the skill's last trial before this one ended; empty if there was none."""
    most_prompts: int
    images: int
    seed: int
    prompts: list[str]
    known: NonNegativeInt
    """The number of held-out prompts of the skill's kind when the trial began."""


def begin_trial(skill: LearnedSkill, runs: Runs, settings: TrialSettings) -> BegunTrial:
    """The trial of a skill: the one that was begun with these settings, or else a new one on the runs' prompts.

    Raises:
        InputError: The file is damaged.
    """
    last_trial = _read(skill)
    if last_trial is not None and (last_trial.most_prompts, last_trial.images, last_trial.seed) == (
        settings.prompts,
        settings.images,
        settings.seed,
    ):
        return last_trial
    trial = BegunTrial(
        version=skill.version,
        earlier=_end_of_last(skill),
        most_prompts=settings.prompts,
        images=settings.images,
        seed=settings.seed,
        prompts=held_out_prompts(runs, skill.kind, settings.prompts, earlier=skill.figures),
        known=count_held_out(runs, skill.kind),
    )
    path = _path(skill)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, strict_json(trial.model_dump(), indent=1, ensure_ascii=False).encode())
    return trial


def has_begun(skill: LearnedSkill) -> bool:
    """Whether a trial of a skill has begun and not ended.

    Raises:
        InputError: The file is damaged.
    """
    return _read(skill) is not None


def _read(skill: LearnedSkill) -> BegunTrial | None:
    check_own_files(skill.folder, [_FOLDER], depth=6)
    path = _path(skill)
    try:
        trial = parse_model(BegunTrial, read_regular(path, within=skill.folder))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read ({reason}); delete it, and the trial begins again") from None
    return trial if (trial.version, trial.earlier) == (skill.version, _end_of_last(skill)) else None


def _end_of_last(skill: LearnedSkill) -> str:
    return str(skill.figures.get("at", ""))


def _path(skill: LearnedSkill) -> Path:
    return skill.folder / _FOLDER / "begun.json"
