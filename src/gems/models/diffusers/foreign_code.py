"""What the small files of a pipeline may name: parts of diffusers and transformers, no code of somebody else."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from gems.errors import InputError
from gems.models.diffusers.families import family_of
from gems.models.diffusers.source import PipelineSource
from gems.models.local_weights import refuse_kernels, without_questions
from gems.secrets import one_line

__all__ = ["refuse_foreign_code"]

_LIBRARIES: Final = ("diffusers", "transformers")


def refuse_foreign_code(source: PipelineSource) -> None:
    """Refuse a pipeline whose parts are classes of other modules, or name repositories of code.

    Diffusers imports whatever module is named, when it loads a single file with the configuration of a folder.

    Args:
        source: A folder or repository.

    Raises:
        InputError: A part would run code that belongs to neither library, and that nobody has said to trust.
    """
    if source.is_own:
        return
    packages = family_of(source.pipeline_class).packages
    for name, library in _named_libraries(source.index):
        if library.partition(".")[0] not in packages and _module_of(library) is None:
            raise InputError(
                f"{source.path}: its {name} is of the module {one_line(library, 80)!r}, which is no part of diffusers "
                "or transformers; read its code, and if you trust it, set trust_remote_code"
            )
    for name, (library, kind) in source.components.items():
        part = None
        with suppress(Exception):  # a package that the class needs is missing: loading says which
            part = getattr(_module_of(library), kind, None)
        _refuse_kernels(source, name, part)


def _named_libraries(index: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each part's name and module, also where no class stands beside it: diffusers imports the module first.

    It takes two letters for a pair, too.
    """
    for name, value in index.items():
        is_pair = isinstance(value, list) or (isinstance(value, str) and len(value) == 2)
        if is_pair and value and isinstance(value[0], str) and not name.startswith("_"):
            yield name, value[0]


def _module_of(library: str) -> Any:
    """The library, or the package of diffusers with a pipeline, which has some parts; None if it is another module."""
    if library in _LIBRARIES:
        return importlib.import_module(library)
    from diffusers import pipelines

    for parent in (pipelines.__name__, f"{pipelines.__name__}.deprecated") if library.isidentifier() else ():
        spec = importlib.util.find_spec(f"{parent}.{library}")
        if spec is not None and spec.submodule_search_locations is not None:
            return importlib.import_module(spec.name)
    return None


def _refuse_kernels(source: PipelineSource, name: str, kind: Any) -> None:
    """Refuse a part that is a model of transformers and names a repository of code in its configuration."""
    import transformers

    if hasattr(kind, "_model_mapping"):
        reader: Any = transformers.AutoConfig
    elif isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        reader = getattr(kind, "config_class", None)
    else:  # no model; or one whose library is missing, which cannot be loaded either
        return
    config = None
    # Loading the weights reads it in the same way, and says what is wrong with it.
    with suppress(Exception), without_questions():
        config = reader.from_pretrained(
            source.path, subfolder=name, revision=source.commit, local_files_only=not source.may_download
        )
    if config is not None:
        refuse_kernels(config, f"{source.path}/{name}")
