"""Shows a run on the console as it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from gems.cli.summaries import MARKS
from gems.printable import in_plain_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gems.graph.events import Event, PromptEvent, StepEvent, VerdictEvent

__all__ = ["LiveRun"]


class LiveRun:
    """Prints a run's events, and draws a bar of the denoising steps if the console is a terminal.

    The events may be those of a service, which can send anything: none of it is markup.
    """

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
        """The questions, by the id of the requirement."""
        self._strategies: dict[int, str] = {}
        """Where the prompt of each image of the round so far comes from, by candidate."""
        self._candidate: int | None = None
        """The image whose verdicts are being printed."""
        self._bar: TaskID | None = None
        self.notes: set[str] = set()
        """The notes that were shown."""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def lacks_question(self, event: Event) -> bool:
        """Whether an event answers a question that no event has told yet."""
        return event["event"] == "verdict" and event["requirement_id"] not in self._questions

    def learn_questions(self, questions: Mapping[str, str]) -> None:
        """Take over questions, by the id of the requirement, that events told to others before this one listened."""
        self._questions = {**questions, **self._questions}

    def __call__(self, event: Event) -> None:
        """Show one event. Some kinds show nothing."""
        match event["event"]:
            case "memories":
                if count := event["count"]:
                    self._print(f"[dim]remembered {_text(count)} similar run{'s' if count > 1 else ''}[/]")
            case "reuse":
                self._print(f"[dim]run {escape(event['run'])} solved this before: its image is returned[/]")
            case "skills":
                self._questions |= {check["id"]: f"{check['question']} ({check['skill']})" for check in event["checks"]}
                self._print(f"[dim]skills: {escape(', '.join(event['skills']))}[/]")
            case "requirements":
                self._questions |= {r["id"]: r["question"] for r in event["requirements"]}
                for note in event.get("notes", ()):  # older services do not say it
                    self.notes.add(str(note))
                    self._print(f"[dim]note: {_text(note)}[/]")
            case "experience":
                self._print(f"[dim]learned: {escape(in_plain_words(event['experience']))}[/]")
            case "prompt":
                self._show_prompt(event)
            case "step":
                self._show_step(event)
            case "image":
                self._strategies[event["candidate"]] = event.get("strategy", "")  # older services do not say it
                self._remove_bar()
            case "verdict":
                self._show_verdict(event)
            case "attempt":
                self._print(f"  {_text(event['passed'])} of {_text(event['total'])} passed, score {event['score']:.2f}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def _show_prompt(self, event: PromptEvent) -> None:
        self._strategies, self._candidate = {}, None
        self._print(
            f"[bold]Round {_text(event['round'])}[/] [dim]{_text(event['strategy'])}[/] {escape(event['prompt'])}"
        )

    def _show_step(self, event: StepEvent) -> None:
        step, steps = int(event["step"]), int(event["steps"])
        if self._bar is None:
            self._bar = self._progress.add_task("drawing", total=steps)
        self._progress.update(self._bar, completed=step, total=steps)

    def _remove_bar(self) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None

    def _show_verdict(self, event: VerdictEvent) -> None:
        candidate, strategies = event["candidate"], self._strategies
        if (len(strategies) > 1 or candidate) and candidate != self._candidate:
            self._candidate = candidate
            is_mixed = len({*strategies.values()}) > 1
            source = f", {_text(strategies[candidate])}" if is_mixed and candidate in strategies else ""
            self._print(f"  [bold]image {_text(candidate + 1)}[/]{source}")
        question = self._questions.get(event["requirement_id"], event["requirement_id"])
        reason = f" [dim]{escape(event['reason'])}[/]" if event["answer"] != "yes" and event["reason"] else ""
        self._print(f"  {MARKS[event['answer']]} {escape(question)} [dim]{event['confidence']:.2f}[/]{reason}")


def _text(value: object) -> str:
    return escape(str(value))
