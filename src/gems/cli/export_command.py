"""``gems export``: a batch's results as a data set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from gems.cli.arguments import AsJson, Quiet
from gems.cli.console import err, guarded, out, print_json

__all__ = ["export"]


@guarded
def export(
    source: Annotated[Path, typer.Argument(help="The batch's folder: --out of gems batch.")],
    *,
    kind: Annotated[str, typer.Option("--to", help="webdataset, imagefolder or preferences.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the data set.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Include prompts that were not solved, with their best image.")
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="Minimum score difference between a pair's chosen and rejected images.")
    ] = 0.1,
    pairs: Annotated[int, typer.Option(min=1, help="Maximum pairs per prompt.")] = 1,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="LOCATION",
            help="Where the batch kept its images, if not in its own folder.",
            show_default="$GEMS_IMAGES, or $GEMS_HOME/images",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a batch's results into a data set.

    [bold]gems export results --to preferences --out pairs[/bold]

    webdataset: shards of KEY.png, KEY.txt, KEY.json. imagefolder: train/ with metadata.jsonl, as Hugging Face datasets
    loads it. preferences: Parquet with jpg_0, jpg_1, label_0 and caption, as Diffusion-DPO trainers read it: each pair
    is an image of a prompt that met more requirements and one that met fewer, with all verdicts.

    OUT is a new folder, or that of an earlier export: its files are replaced, and other files in it stay.
    """
    from gems.bulk.export import Choice
    from gems.bulk.export import export as write

    with Progress(console=err, disable=quiet or not err.is_terminal, transient=True) as progress:
        task = progress.add_task(kind, total=None)
        choice = Choice(solved=not everything, margin=margin, pairs=pairs)
        dataset = write(source, kind, folder, choice, images=images, on_row=lambda: progress.advance(task))
    if as_json:
        print_json({**asdict(dataset), "folder": str(dataset.folder)})
        return
    left_out = (
        f"; {dataset.unverified:,} images left out, without a verdict on every requirement"
        if dataset.unverified
        else ""
    )
    out.print(
        f"{dataset.examples:,} examples in {escape(str(dataset.folder))}; {dataset.skipped:,} prompts gave none"
        f"{left_out}",
        highlight=False,
    )
