"""Diffusers pipelines as they lie in a folder, a repository or a file: what they are, before any weights are loaded."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from gems.errors import BackendError, InputError
from gems.models.diffusers.families import call_parameters, family_of
from gems.models.diffusers.modular import MODULAR_INDEX, modular_class
from gems.models.diffusers.weight_files import known_repository
from gems.secrets import one_line

__all__ = ["PipelineSource", "accepts", "default_of", "local_path"]

_CONFIGS: Final = {"scheduler": "scheduler_config.json", "guider": "guider_config.json"}
"""The configuration files of components that are no models, by component; a model has a config.json."""
_MOST_BYTES: Final = 16 * 2**20
"""The size of the largest file that is read to learn what a pipeline is; real ones have a few thousand bytes."""
_OWN: Final = {"PocketPipeline": "gems.models.pocket.light", "OpenPipeline": "gems.models.open.open_pipeline"}
"""The modules of the pipelines of this package, by class. They load folders: those that come with it, and others."""
_INDEXES: Final = ("model_index.json", MODULAR_INDEX)
"""The files that say which pipeline a folder or repository holds; the first that is there counts."""


def local_path(text: str) -> str:
    """A path or the id of a repository, with a ~ in front replaced by the home folder, as far as there is one."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # there is no such user
        return text


@dataclass(frozen=True)
class PipelineSource:
    """Where a pipeline comes from. Nothing here loads weights; a repository's ``model_index.json`` is downloaded.

    Attributes:
        path: A local folder, the id of a repository, or a file with the weights alone.
        revision: A branch, tag or commit of the repository; None is its main branch.
        trust_remote_code: Whether code in the repository may run.
        config: For a file: the folder or repository of the pipeline that its weights are for, if it was given.
        may_download: Whether files may be downloaded; otherwise only copies that this machine has are used.
    """

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    config: str | None = None
    may_download: bool = True

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        trust_remote_code: bool = False,
        config: str | None = None,
        may_download: bool = True,
    ) -> PipelineSource:
        """Parse ``FOLDER_OR_REPO_OR_FILE[@REVISION]``; the name of a folder or file may contain an @.

        Raises:
            InputError: A local folder is given with a revision.
        """
        text = local_path(text)
        path, _, revision = text.rpartition("@")
        if not path or Path(text).exists():
            path, revision = text, ""
        if revision and Path(path).is_dir():
            raise InputError(f"{path} is a local folder, which has no revisions: leave @{revision} out")
        return cls(path, revision or None, trust_remote_code, config, may_download)

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a repository."""
        return Path(self.path) if Path(self.path).is_dir() else None

    @property
    def file(self) -> Path | None:
        """The file with the weights; None for a folder or repository."""
        return Path(self.path) if Path(self.path).is_file() else None

    @cached_property
    def layout(self) -> PipelineSource:
        """Where the small files are that say how the pipeline is built: itself, or what belongs to a file of weights.

        Raises:
            InputError: The file is of another format, or it does not say which pipeline it is for.
        """
        if self.file is None:
            return self
        return PipelineSource.parse(self.config or known_repository(self.file), may_download=self.may_download)

    @property
    def name(self) -> str:
        """The last part of the repository's id or of the path; in the hub's cache, that of the repository's id."""
        if self.file:
            return self.file.stem
        parts = [part for part in self.path.replace("\\", "/").split("/") if part]
        if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
            return parts[-3].rpartition("--")[2]
        return parts[-1] if parts else ""

    @cached_property
    def index_file(self) -> Path:
        """``model_index.json`` or, without one, the index of a modular pipeline; downloaded if it is in a repository.

        Raises:
            BackendError: The folder does not exist, or the download failed.
        """
        if self.file:
            return self._layout_index()
        if self.folder:
            return next(filter(Path.is_file, map(self.folder.joinpath, _INDEXES)), self.folder / _INDEXES[0])
        if self.path.startswith((".", "/", "~")):
            raise BackendError(f"there is no folder or file {self.path}", retryable=False)
        failure: Exception | None = None
        for name in _INDEXES:
            try:
                return self._downloaded(name, self.revision)
            except EntryNotFoundError as error:  # the other index may be there
                failure = failure or error
            except (OSError, ValueError) as error:
                failure = error
                break
        raise BackendError(
            f"cannot load the image model {self.path}: {one_line(failure or '')}", retryable=False
        ) from failure

    def _layout_index(self) -> Path:
        try:
            return self.layout.index_file
        except BackendError as error:
            raise BackendError(
                f"{self.path} holds weights alone, and the configuration that belongs to them, of {self.layout.path}, "
                "cannot be had: give --generator-option config=FOLDER of a copy of it, which needs no weights "
                f"({error})",
                retryable=False,
            ) from error

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of ``model_index.json``.

        Raises:
            BackendError: The file is missing or damaged.
        """
        file, path = self.index_file, self.layout.path
        if not file.is_file():
            raise BackendError(f"{path} has no model_index.json: it is not a pipeline", retryable=False)
        try:
            index = _json_object(file)
        except OSError as error:
            raise BackendError(f"{path}: cannot read {file.name} ({error.strerror})", retryable=False) from error
        except ValueError as error:
            raise BackendError(f"{path}: {file.name} is damaged ({one_line(error, 80)})", retryable=False) from error
        name = index.get("_class_name")
        parts = name if isinstance(name, list) and len(name) == 2 else [name]
        if not all(isinstance(part, str) for part in parts):
            raise BackendError(f"{path}: {file.name} is damaged (it names no class)", retryable=False)
        return index

    @property
    def commit(self) -> str | None:
        """The commit that the revision refers to; None for a local folder or file."""
        return None if self.folder or self.file else self.index_file.parent.name  # downloads are in snapshots/COMMIT

    @cached_property
    def pipeline_class(self) -> type:
        """The pipeline's class.

        Raises:
            InputError: The class is code in the repository, which is not trusted.
            BackendError: This version of diffusers does not have the class.
        """
        name = self.index["_class_name"]
        if self.is_modular:
            return modular_class(self.index, self.path)
        if isinstance(name, list):  # [file, class]: code in the repository
            return _remote_class(self, *name)
        kind = getattr(importlib.import_module(_OWN[name] if self.is_own else "diffusers"), name, None)
        if not inspect.isclass(kind) or not hasattr(kind, "from_pretrained"):
            import diffusers

            advice = "download it and give the folder" if name in _OWN else "try 'pip install -U diffusers'"
            raise BackendError(
                f"{self.path} is for the pipeline {name}, which diffusers {diffusers.__version__} does not have; "
                f"{advice}",
                retryable=False,
            )
        return kind

    @property
    def is_modular(self) -> bool:
        """Whether it is a modular repository."""
        return self.index_file.name == MODULAR_INDEX

    @cached_property
    def editing_class(self) -> type | None:
        """The class that edits images: the pipeline's own, or its image-to-image sibling; None if neither can."""
        kind = self.pipeline_class
        if self.is_modular:
            return None
        if accepts(kind, "keep") or family_of(kind).edits:
            return kind
        # Importing this imports most pipelines of diffusers.
        from diffusers.pipelines.auto_pipeline import AUTO_IMAGE2IMAGE_PIPELINES_MAPPING as EDITING
        from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as DRAWING

        if kind in EDITING.values():
            return kind
        family = next((name for name, drawing_class in DRAWING.items() if drawing_class is kind), None)
        sibling: type | None = EDITING.get(family)
        return sibling

    @property
    def denoiser(self) -> str | None:
        """The name of the component that runs in each step: the transformer or U-Net."""
        return next((name for name in ("transformer", "unet") if self.components.get(name)), None)

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """The library and class of each component that the pipeline has."""
        return {
            name: (value[0], value[1])
            for name, value in self.index.items()
            if isinstance(value, list) and not name.startswith("_") and _names_class(value[:2])
        }

    @property
    def transformers_classes(self) -> list[str]:
        """The names of the classes of transformers that its components are of."""
        return [kind for library, kind in self.components.values() if library == "transformers"]

    @property
    def is_own(self) -> bool:
        """Whether it is a pipeline of this package, whose images are the same on every machine."""
        return self.folder is not None and str(self.index["_class_name"]) in _OWN

    def component_class(self, name: str) -> type | None:
        """The class of a component of diffusers; None if there is no such component, or it is of another library."""
        library, kind = self.components.get(name, ("", ""))
        component = getattr(importlib.import_module("diffusers"), kind, None) if library == "diffusers" else None
        return component if inspect.isclass(component) else None

    def component_config(self, name: str | None) -> dict[str, Any]:
        """A component's configuration file; empty if it cannot be had, or there is no such component."""
        if self.file:
            return self.layout.component_config(name)
        if name not in self.components:
            return {}
        if name not in self._configs:
            self._configs[name] = self._read_config(name)
        return self._configs[name]

    @cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        return {}

    def _read_config(self, component: str) -> dict[str, Any]:
        name = _CONFIGS.get(component, "config.json")
        try:
            file = (
                Path(self.folder, component, name)
                if self.folder
                else self._downloaded(f"{component}/{name}", self.commit)
            )
            return _json_object(file)
        except (OSError, ValueError):  # loading the weights will say what is wrong with the folder or the hub
            return {}

    def _downloaded(self, file: str, revision: str | None) -> Path:
        only_local = not self.may_download
        return Path(huggingface_hub.hf_hub_download(self.path, file, revision=revision, local_files_only=only_local))


def _json_object(file: Path) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is too large, or something else.
    """
    with file.open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MB")
    try:
        fields = json.loads(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    return fields


def _names_class(value: list[Any]) -> bool:
    return len(value) == 2 and all(isinstance(part, str) and part for part in value)


def _remote_class(source: PipelineSource, file: str, name: str) -> type:
    from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

    if not source.trust_remote_code:
        raise InputError(
            f"{source.path} contains code of its own ({file}.py); read it, and if you trust it, set trust_remote_code"
        )
    try:
        kind: type = get_class_from_dynamic_module(
            source.path,
            module_file=f"{file}.py",
            class_name=name,
            revision=source.commit,
            trust_remote_code=True,
            local_files_only=not source.may_download,
        )
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise BackendError(f"cannot load the code of {source.path}: {one_line(error)}", retryable=False) from error
    return kind


def default_of(kind: type, argument: str) -> Any:
    """The default of an argument of a pipeline class's call; None if it has none, or there is no such argument."""
    parameter = call_parameters(kind).get(argument)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def accepts(kind: type, argument: str) -> bool:
    """Whether the call of a pipeline class takes an argument of that name."""
    return argument in call_parameters(kind)
