"""The tables of docs/reference/pipelines.md, made from the code: `python tests/pipeline_page.py` writes them."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import diffusers
from tiny_families import TINY_CLASSES

from gems.models.diffusers.families import DRAWING, call_parameters, refusal
from gems.models.diffusers.source import PipelineSource

__all__ = ["NOT_RUN", "PAGE", "pipeline_classes", "with_tables"]

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "pipelines.md"
_REMOVED: Final = {"OnnxStableDiffusionInpaintPipelineLegacy"}
"""Names that diffusers still lists although it has removed their classes."""
NOT_RUN: Final = {
    "Cosmos2TextToImagePipeline": (
        "its safety checker, which cannot be left out, downloads models that one has to apply for: it has been run "
        "with stand-ins for both packages alone"
    ),
}
"""Classes that draw but cannot be run with random weights, each with the reason."""
_EDITORS: Final = {"KolorsPipeline": "by strength"}
"""How classes edit that diffusers shows only where their packages are installed."""


def pipeline_classes() -> Iterator[type]:
    """All pipeline classes that the installed diffusers exports, those whose packages are missing among them."""
    bases = (diffusers.DiffusionPipeline, diffusers.ModularPipeline)
    for name in dir(diffusers):
        kind = getattr(diffusers, name) if "Pipeline" in name and name not in _REMOVED else None
        if inspect.isclass(kind) and kind not in bases and ("dummy" in kind.__module__ or issubclass(kind, bases)):
            yield kind


def with_tables(page: str) -> str:
    """The page with the tables as they should be."""
    for name, lines in (("drawn", _drawn()), ("refused", _refused())):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        pattern = re.compile(re.escape(start) + ".*" + re.escape(end), re.DOTALL)
        page = pattern.sub(lambda _: start + "\n" + "\n".join(lines) + "\n\n" + end, page)  # noqa: B023
    return page


def _drawn() -> Iterator[str]:
    yield "| Class | Edits | Batches | Run | Note |"
    yield "|---|---|---|---|---|"
    for kind in pipeline_classes():
        if kind.__name__ in DRAWING:
            run = "yes" if kind.__name__ in TINY_CLASSES else "no"
            batches = "yes" if DRAWING[kind.__name__].is_batch_sound else "no"
            yield f"| `{kind.__name__}` | {_edits(kind)} | {batches} | {run} | {_note(kind)} |"


def _edits(kind: type) -> str:
    if kind.__name__ in _EDITORS:
        return _EDITORS[kind.__name__]
    source = PipelineSource("")
    vars(source)["pipeline_class"] = kind
    editor = None if "dummy" in kind.__module__ else source.editing_class
    if editor is None:
        return "no"
    return "by strength" if "strength" in call_parameters(editor) else "by instruction"


def _note(kind: type) -> str:
    family = DRAWING[kind.__name__]
    notes = [f"needs {' and '.join(family.packages)}"] if family.packages else []
    notes += [NOT_RUN[kind.__name__]] if kind.__name__ in NOT_RUN else []
    if len([name for name in call_parameters(kind) if name.endswith("num_inference_steps")]) > 1:
        notes.append("`steps` are those of the decoder")
    notes += [f"`{name}` is off" for name in family.switches]
    if family.canvas:
        notes.append("draws on a white image")
    if family.references and _edits(kind) == "no":
        notes.append("takes images, which GEMS does not give it")
    return "; ".join(notes)


def _refused() -> Iterator[str]:
    groups = defaultdict[str, list[str]](list)
    for kind in pipeline_classes():
        if kind.__name__ not in DRAWING:
            reason = refusal(kind).removeprefix(f"{kind.__name__} ").partition(";")[0]
            groups[re.sub(r" \(.*\)", "", reason)].append(f"`{kind.__name__}`")
    yield "| Why | Classes |"
    yield "|---|---|"
    for reason, names in sorted(groups.items()):
        yield f"| {reason} | {', '.join(names)} |"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
