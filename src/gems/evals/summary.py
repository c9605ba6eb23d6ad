"""The report of an evaluation: report.json for programs, report.md for a repository, report.html for people."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gems.bulk.faults import in_words
from gems.errors import InputError
from gems.evals.analysis import Judged, is_right
from gems.extras import how_to_install
from gems.files import write_atomically
from gems.graph.state import Usage
from gems.json_text import strict_json
from gems.memory.image_store import ImageStore, decode_png, read_from, stores_beside
from gems.printable import as_markdown, as_shown, printable

__all__ = ["interrupted_in_words", "write_report"]

_GALLERY_SIZE: Final = 6
"""Wins that are shown, and losses."""
_THUMBNAIL: Final = 240
"""Pixels on the longer side."""
_COLOURS: Final = ("#8c8c8c", "#c58b2a", "#3f7fbf", "#7fb0d8", "#d0552f", "#9a5fb0", "#3f9a6b", "#17633f", "#6b4f2a")


def write_report(out: Path, report: dict[str, Any], judged: dict[str, list[Judged]]) -> None:
    """Write report.json, report.md, report.html and the plots as SVG into ``out``.

    Raises:
        InputError: matplotlib, which draws the plots, is not installed.
    """
    write_atomically(out / "report.json", (strict_json(report, indent=2, ensure_ascii=False) + "\n").encode())
    markdown = _templates().get_template("report.md.j2").render(report=report)
    write_atomically(out / "report.md", markdown.encode())
    plots = _plots(report)
    for name, svg in plots.items():
        write_atomically(out / f"{name}.svg", svg.encode())
    images = stores_beside(out)
    wins, losses = (_gallery(judged, images, won=won) for won in (True, False))
    page = (
        _templates(html=True)
        .get_template("report.html.j2")
        .render(report=report, plots=plots, wins=wins, losses=losses)
    )
    write_atomically(out / "report.html", page.encode())


def interrupted_in_words(arm: Mapping[str, Any]) -> str:
    """What an arm has cost beside its figures: at a kill or a stop, or for lost answers; empty if nothing."""
    images, calls = arm.get("images_in_flight_at_a_kill_at_most"), arm.get("interrupted_chat_calls")
    parts = [f"up to {images} more images were in flight at a kill"] if images else []
    lost_tokens = arm.get("tokens_of_lost_answers_about", 0)
    parts += [Usage(lost_tokens=lost_tokens).lost_in_words] if lost_tokens else []
    parts += [f"stops have interrupted steps that had made {calls} chat calls"] if calls else []
    return f"{'; '.join(parts)}: paid for, and in no figure" if parts else ""


def _as_markdown(value: object) -> object:
    """Text becomes text in Markdown: errors come from servers, names of skills from files."""
    return as_markdown(value) if type(value) is str else value


def _as_code(text: str) -> Markup:
    """A text as code in Markdown, on one line, whatever backticks are in it."""
    line = " ".join(printable(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return Markup(f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}")  # noqa: S704 - no HTML


@cache
def _templates(*, html: bool = False) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,  # noqa: S701  # Markdown has other special characters
        finalize=as_shown if html else _as_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}%"
    environment.filters["code"] = _as_code
    environment.filters["fault"] = in_words
    environment.filters["interrupted"] = interrupted_in_words
    environment.filters["interval"] = lambda ci: f"{100 * ci[0]:.1f}–{100 * ci[1]:.1f}"
    environment.filters["points"] = lambda value: f"{value:+.1f}".replace("-", "−")
    return environment


# --- plots ----------------------------------------------------------------------------------------------------------

Points: TypeAlias = list[tuple[float, float]]

_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gems",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
"""Settings of matplotlib for the plots."""


def _matplotlib() -> Any:
    """The module, without the ``matplotlibrc`` of the current folder, which may be somebody else's.

    Raises:
        InputError: It is not installed.
    """
    # It reads that file when it is imported, whatever its own settings and variables say.
    is_read = "matplotlib" not in sys.modules and os.path.lexists("matplotlibrc")
    try:
        with chdir(Path(__file__).parent) if is_read else nullcontext():
            import matplotlib as mpl
    except ImportError as error:
        raise InputError(
            f"the report's plots need matplotlib, which is not installed: {how_to_install('eval')}"
        ) from error
    return mpl


def _plots(report: dict[str, Any]) -> dict[str, str]:
    """Inline SVG by name."""
    mpl = _matplotlib()
    arms = report["arms"]
    curves: dict[str, Points] = {
        name: [(p["images_per_prompt"], 100 * p["all_correct"]) for p in arm["curve"]]
        for name, arm in arms.items()
        if "curve" in arm
    }
    atoms: dict[str, Points] = {
        name: [(float(n), 100 * v["score"]) for n, v in arm["by_atoms"].items()] for name, arm in arms.items()
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a matplotlibrc says: it can have LaTeX run
        mpl.rcParams.update(_STYLE)
        plots = {"rates": _bars(arms), "atoms": _lines(atoms, "atoms in the prompt", "Soft-TIFA GM, %")}
        if curves:
            plots["curve"] = _lines(curves, "images spent per prompt", "all-correct rate, %")
    return plots


def _bars(arms: dict[str, Any]) -> str:
    """All-correct rates with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.36 * len(arms) + 1), layout="constrained")
    axes = figure.subplots()
    for y, (name, arm) in enumerate(reversed(arms.items())):
        low, high = (100 * bound for bound in arm["ci95"])
        axes.barh(y, 100 * arm["all_correct"], color=_colour(name, arms), height=0.68)
        axes.plot([low, high], [y, y], color="#222222", linewidth=1.5)
        axes.annotate(
            f"{100 * arm['all_correct']:.1f}", (high, y), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(arms)), list(reversed(arms)))
    axes.set_xlim(0, 108)
    axes.set_xlabel("all-correct rate, %, with 95% interval")
    return _svg(figure)


def _lines(lines: dict[str, Points], x_label: str, y_label: str) -> str:
    """A line per arm; arms of a second generator are dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "--" if "@" in name else "-", marker="o", markersize=4, color=_colour(name, lines), label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return _svg(figure)


def _colour(name: str, arms: Iterable[str]) -> str:
    """An arm has the same colour on every generator."""
    kinds = list(dict.fromkeys(arm.partition("@")[0] for arm in arms))
    return _COLOURS[kinds.index(name.partition("@")[0]) % len(_COLOURS)]


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


# --- gallery --------------------------------------------------------------------------------------------------------


def _gallery(judged: dict[str, list[Judged]], images: Sequence[ImageStore], *, won: bool) -> list[dict[str, Any]]:
    """Prompts that the fullest arm gets right and one shot does not, or that the fullest arm still gets wrong.

    They are the first ones in the order of the prompts, not a selection.
    """
    fullest = next(
        (name for name in ("loop+memory+skills", "loop+skills", "loop+memory", "loop") if name in judged), None
    )
    if fullest is None:
        return []
    single = {j.row["index"]: j for j in judged.get("single", [])}
    cases = []
    for j in (j for j in judged[fullest] if j.order == 1):
        one_shot = single.get(j.row["index"])
        if (
            j.row.get("best") is None
            or j.all_correct is not won
            or (won and (one_shot is None or one_shot.all_correct))
        ):
            continue
        pictures = [_picture(j, i, images) for i in range(len(j.attempts))]
        if won and one_shot is not None and (best := one_shot.row.get("best")) is not None:
            pictures.insert(0, {**_picture(one_shot, best, images), "caption": "one shot, wrong", "shipped": False})
        wrong = [q.question for q, s in zip(j.prompt.questions, j.returned_scores, strict=True) if s < 0.5]
        cases.append(
            {"prompt": j.prompt.prompt, "outcome": j.row.get("outcome", "failed"), "wrong": wrong, "pictures": pictures}
        )
        if len(cases) == _GALLERY_SIZE:
            break
    return cases


def _picture(judged: Judged, index: int, images: Sequence[ImageStore]) -> dict[str, Any]:
    """An attempt's image with its caption."""
    attempt = judged.attempts[index]
    truth = f", {'right' if is_right(judged.scores[index]) else 'wrong'}" if index in judged.scores else ""
    return {
        "image": _thumbnail(read_from(images, attempt["sha256"], attempt["image"])),
        "caption": f"round {attempt['round']}{truth}",
        "prompt": attempt["prompt"],
        "shipped": index == judged.row["best"],
    }


def _thumbnail(png: bytes) -> str:
    small = decode_png(png).convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
