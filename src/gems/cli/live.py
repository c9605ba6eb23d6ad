"""Shows a run as it happens, from the graph's custom events."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

__all__ = ["MARKS", "LiveRun"]


MARKS = {"yes": "[green]✓[/]", "no": "[red]✗[/]", "unsure": "[yellow]?[/]"}


class LiveRun:
    """Prints what happens on a console; the denoising steps are a bar where the console is a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._console = console
        self._questions: dict[str, str] = {}
        self._images = 0
        self._shown: int | None = None
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event; kinds that have nothing to show are passed over."""
        show = getattr(self, f"_on_{event['event']}", None)
        if show is not None:
            show(event)

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def _on_memories(self, event: dict[str, Any]) -> None:
        if event["count"]:
            self._print(f"[dim]remembered {event['count']} similar run{'s' if event['count'] > 1 else ''}[/]")

    def _on_reuse(self, event: dict[str, Any]) -> None:
        self._print(f"[dim]solved before, in run {event['run']}: that image is given[/]")

    def _on_skills(self, event: dict[str, Any]) -> None:
        self._questions |= {check["id"]: f"{check['question']} ({check['skill']})" for check in event["checks"]}
        self._print(f"[dim]skills: {', '.join(event['skills'])}[/]")

    def _on_requirements(self, event: dict[str, Any]) -> None:
        self._questions |= {r["id"]: r["question"] for r in event["requirements"]}

    def _on_experience(self, event: dict[str, Any]) -> None:
        self._print(f"[dim]learned: {escape(event['experience'])}[/]")

    def _on_prompt(self, event: dict[str, Any]) -> None:
        self._images, self._shown = 0, None
        self._print(f"[bold]Round {event['round']}[/] [dim]{event['strategy']}[/] {escape(event['prompt'])}")

    def _on_step(self, event: dict[str, Any]) -> None:
        if self._bar is None:
            self._bar = self._progress.add_task("drawing", total=event["steps"])
        self._progress.update(self._bar, completed=event["step"], total=event["steps"])

    def _on_image(self, event: dict[str, Any]) -> None:
        self._images += 1
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None

    def _on_verdict(self, event: dict[str, Any]) -> None:
        if self._images > 1 and event["candidate"] != self._shown:
            self._shown = event["candidate"]
            self._print(f"  [bold]image {event['candidate'] + 1}[/]")
        question = self._questions.get(event["requirement_id"], event["requirement_id"])
        reason = f" [dim]{escape(event['reason'])}[/]" if event["answer"] != "yes" and event["reason"] else ""
        self._print(f"  {MARKS[event['answer']]} {escape(question)} [dim]{event['confidence']:.2f}[/]{reason}")

    def _on_attempt(self, event: dict[str, Any]) -> None:
        self._print(f"  {event['passed']} of {event['total']} passed, score {event['score']:.2f}")
