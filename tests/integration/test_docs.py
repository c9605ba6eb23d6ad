"""Runs every code block of the documentation, or checks it if it is marked so (see ``documentation.py``)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from documentation import ROOT, Block, Command, Page, PageError, commands, pages
from forked import Process, command_line, environment, run
from pydantic import ValidationError
from servers.gems_service import serving

import gems
from gems.cli.main import app

pytestmark = pytest.mark.xdist_group("docs")

PAGES = pages()
DOCUMENTED_ADDRESS = "http://127.0.0.1:8000"
"""The service's address as written in the pages."""
HARMLESS = ("cat", "cp", "echo", "head", "ls", "mkdir", "printf")
"""Programs that a page may use and that the tests run."""
NOT_RUN = ("export", "make", "pip", *(() if shutil.which("curl") else ("curl",)))
"""Programs that the tests check but do not run: they would change too much, or are not installed."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)


# --- running ----------------------------------------------------------------------------------------------------------


class Session:
    """Runs one page: a folder, a GEMS home, and a Python process in which the blocks share a namespace."""

    def __init__(self, page: Page, folder: Path, service: Callable[[], str]) -> None:
        self.page, self.folder, self._service = page, folder, service
        self.environment = environment(folder / "gems-home")
        for name in ("GEMS_MLLM", "GEMS_GENERATOR"):  # a reader has the package's own defaults
            del self.environment[name]
        self._log = folder / "python.log"
        self._python: Process | None = None
        self._work = folder / "work"
        self._work.mkdir()

    def treat(self, block: Block) -> None:
        """Run a block, or only check it if it is marked ``not-run``.

        Raises:
            AssertionError: The block does not work as the page says.
        """
        runs = block.mark != "not-run"
        if block.mark == "file":
            (self._work / block.argument).write_text(block.source, encoding="utf-8")
        elif block.language == "python":
            self._treat_python(block, runs)
        elif block.language == "sh":
            variables = dict(self.environment)
            for command in commands(block):
                if runs:
                    self._run(command, variables, with_service=block.mark == "with-service")
                else:
                    check(command)
        else:
            check_data(block)

    def _with_address(self, text: str) -> str:
        return text.replace(DOCUMENTED_ADDRESS, self._service()) if DOCUMENTED_ADDRESS in text else text

    def _treat_python(self, block: Block, runs: bool) -> None:
        source = self._with_address(block.source) if block.mark == "with-service" else block.source
        fault = self._ask({"source": source, "path": str(self.page.path), "line": block.line, "run": runs})
        assert not fault, f"{block.place}: {fault}"

    def _ask(self, request: Mapping[str, Any]) -> str:
        if self._python is None:
            with self._log.open("w") as log:
                self._python = Process(
                    [sys.executable, str(ROOT / "tests" / "servers" / "python_session.py")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=self._work,
                    env=self.environment,
                )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(request) + "\n")
        self._python.stdin.flush()
        answer = self._python.stdout.readline()
        return str(json.loads(answer)) if answer else f"Python has ended: {self._log.read_text()[-2000:]}"

    def close(self) -> None:
        if self._python is not None:
            with self._python as python:
                assert python.stdin is not None
                python.stdin.close()
                python.wait(30)

    def _run(self, command: Command, variables: dict[str, str], *, with_service: bool) -> None:
        program, *arguments = command.words
        if program in NOT_RUN:
            check(command)
            if program == "export":
                variables.update(word.split("=", 1) for word in arguments)
            return
        result = self._result(command, variables, with_service=with_service)
        passing = (0, 1) if program == "gems" else (0,)  # exit code 1 means best effort
        outputs = f"{result.stdout[-500:]}\n{result.stderr[-1500:]}"
        assert result.returncode in passing, f"{command.place}: {command}: exit code {result.returncode}\n{outputs}"
        if command.target:
            with (self._work / command.target).open("a" if command.redirect == ">>" else "w") as file:
                file.write(result.stdout)

    def _result(
        self, command: Command, variables: Mapping[str, str], *, with_service: bool
    ) -> subprocess.CompletedProcess[str]:
        program, *arguments = command.words
        if program == "gems":
            words = [self._with_address(word) for word in arguments] if with_service else arguments
            return run(command_line(*words), cwd=self._work, env=variables)
        if program == "python":
            resolved_arguments = [str(ROOT / word) if (ROOT / word).is_file() else word for word in arguments]
            return run([sys.executable, *resolved_arguments], cwd=self._work, env=variables)
        allowed = program in HARMLESS or (program == "curl" and with_service)
        assert allowed, f"{command.place}: mark the block as not-run, or extend HARMLESS: {command}"
        words = [self._with_address(word) for word in command.words]
        return subprocess.run(words, capture_output=True, text=True, cwd=self._work, env=variables, timeout=60)


@contextmanager
def session(page: Page, folder: Path, service: Callable[[], str]) -> Iterator[Session]:
    page_session = Session(page, folder, service)
    try:
        yield page_session
    finally:
        page_session.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A function that returns the address of a service and starts it at the first call."""
    running: list[Any] = []

    def address() -> str:
        if not running:
            context = serving(tmp_path_factory.mktemp("service") / "home")
            running.extend((context, context.__enter__()))
        return str(running[1].url)

    yield address
    if running:
        running[0].__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_or_is_checked(page: Page, tmp_path: Path, service: Callable[[], str]) -> None:
    faults = []
    with session(page, tmp_path, service) as page_session:
        for block in page.blocks():
            try:
                page_session.treat(block)
            except AssertionError as fault:
                faults.append(str(fault))
    assert not faults, "\n\n".join(faults)


# --- checking blocks that are not run ---------------------------------------------------------------------------------


def check(command: Command) -> None:
    """Check a command that is not run.

    Raises:
        PageError: It names a file, option, extra, target or variable that does not exist.
    """
    words = command.words
    while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
        check_variable(words[0], command.place)
        words = words[1:]
    program, *arguments = words or ("",)
    checks: dict[str, Callable[[Sequence[str], str], None]] = {
        "gems": check_gems,
        "python": check_python,
        "make": check_make,
        "pip": check_pip,
        "export": lambda names, place: [check_variable(name, place) for name in names] and None,
    }
    if program in checks:
        checks[program](arguments, command.place)


def check_variable(assignment: str, place: str) -> None:
    name, equals, _ = assignment.partition("=")
    if not equals:
        raise PageError(f"{place}: {assignment} gives no value")
    if name.startswith("GEMS_"):
        package = Path(gems.__file__).parent
        if not any(name in path.read_text(encoding="utf-8") for path in package.rglob("*.py")):
            raise PageError(f"{place}: nothing in the package knows {name}")


def check_make(arguments: Sequence[str], place: str) -> None:
    for target in arguments:
        if "=" not in target and target not in TARGETS:
            raise PageError(f"{place}: the Makefile has no target {target}")


def check_pip(arguments: Sequence[str], place: str) -> None:
    for argument in arguments:
        extras = re.fullmatch(rf"(?:\.|{PROJECT['name']})\[([a-z0-9,-]+)\]", argument)
        for extra in extras[1].split(",") if extras else ():
            if extra not in PROJECT["optional-dependencies"]:
                raise PageError(f"{place}: pyproject.toml has no extra {extra}")


def check_python(arguments: Sequence[str], place: str) -> None:
    """Check that a script of this repository exists and has these options."""
    if not arguments or arguments[0].startswith("-"):
        return
    script = ROOT / arguments[0]
    if not script.is_file():
        raise PageError(f"{place}: there is no {arguments[0]}")
    text = script.read_text(encoding="utf-8")
    for option in (word.partition("=")[0] for word in arguments[1:] if word.startswith("--")):
        field = option.removeprefix("--").replace("-", "_")  # a field of the dataclass that defines the options
        if f'"{option}"' not in text and not re.search(rf"^    {field}:", text, re.MULTILINE):
            raise PageError(f"{place}: {arguments[0]} has no option {option}")


def check_gems(arguments: Sequence[str], place: str) -> None:
    """Check that the command line accepts these words, without running the command."""
    command = deepcopy(typer.main.get_command(app))  # it may be a shared one
    heard: list[dict[str, Any]] = []
    without_bodies(command, lambda **values: heard.append(values))
    try:
        command.main(list(arguments), prog_name="gems", standalone_mode=False)
    except Exception as error:  # the exceptions of the command line library are private
        raise PageError(f"{place}: gems {' '.join(arguments)}: {getattr(error, 'message', error)}") from error
    for values in heard:
        for name, options in (("chat_option", gems.ChatOptions), ("generator_option", gems.GeneratorOptions)):
            pairs = dict(pair.partition("=")[::2] for pair in values.get(name) or ())
            options.model_validate(pairs)


def without_bodies(command: Any, body: Callable[..., None]) -> None:
    command.callback = body
    for child in getattr(command, "commands", {}).values():
        without_bodies(child, body)


def check_data(block: Block) -> None:
    """Check that a data block can be parsed."""
    readers: dict[str, Callable[[str], object]] = {
        "json": json.loads,
        "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
        "toml": tomllib.loads,
        "yaml": yaml.safe_load,
    }
    if block.language in readers:
        try:
            readers[block.language](block.source)
        except (ValueError, yaml.YAMLError) as error:
            raise PageError(f"{block.place}: this is not {block.language}: {error}") from error


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```bash\nls\n```", "bash"),
        ("```\nls\n```", "no language"),
        ("    ls\n", "indented"),
        ("<!-- notrun: because -->\n```sh\nls\n```", "not a known mark"),
        ("<!-- not-run -->\n```sh\nls\n```", "needs an argument"),
        ("```sh\nls | head\n```", "cannot run '|'"),
        ("```sh\nls $(pwd)\n```", "cannot run '('"),
        ("```sh\ngems generate x --no-such-option\n```", "no-such-option"),
        ("<!-- not-run: x -->\n```sh\ngems generate x --no-such-option\n```", "no-such-option"),
        ("<!-- not-run: x -->\n```sh\ngems generate x --max-rounds many\n```", "many"),
        ("<!-- not-run: x -->\n```sh\ngems generate x --chat-option colour=red\n```", "colour"),
        ("<!-- not-run: x -->\n```sh\nmake tea\n```", "no target tea"),
        ('```sh\npip install "gems-graph[everything]"\n```', "no extra everything"),
        ("```sh\nexport GEMS_NONSENSE=1\n```", "GEMS_NONSENSE"),
        ("<!-- not-run: x -->\n```sh\npython examples/nothing.py\n```", "no examples/nothing.py"),
        ("<!-- not-run: x -->\n```sh\npython examples/story_illustrator.py --nothing 1\n```", "no option --nothing"),
        ("<!-- not-run: x -->\n```python\nfrom gems import nothing\n```", "nothing"),
        ("<!-- not-run: x -->\n```python\nimport gems\ngems.build_graph.nothing\n```", "nothing"),
        ("<!-- not-run: x -->\n```python\nx = (\n```", "SyntaxError"),
        ("```python\nassert False, 'so it runs'\n```", "so it runs"),
        ("```sh\nreboot\n```", "mark the block as not-run"),
        ("```json\n{\n```", "not json"),
    ],
)
def test_an_error_in_a_page_is_detected(text: str, complaint: str, tmp_path: Path) -> None:
    page = Page(ROOT / "docs" / "wrong.md")
    page.__dict__["text"] = f"{text}\n"

    def treat_all() -> None:
        with session(page, tmp_path, lambda: "") as page_session:
            for block in page.blocks():
                page_session.treat(block)

    with pytest.raises((AssertionError, ValidationError), match=re.escape(complaint)):
        treat_all()


# --- the pages together -----------------------------------------------------------------------------------------------


def test_every_page_is_in_a_table_of_contents() -> None:
    docs = ROOT / "docs"
    names = {
        page.path.relative_to(docs).with_suffix("").as_posix(): page for page in PAGES if docs in page.path.parents
    }
    listed: list[str] = []
    for name, page in names.items():
        for entry in page.toctree():
            pattern = os.path.normpath(Path(name).parent / entry)
            matches = [other for other in names if fnmatch(other, pattern)]
            assert matches, f"{page.name} lists {entry}, which does not exist"
            listed += matches
    assert sorted(listed) == sorted(set(names) - {"index"}), "each page must be listed exactly once"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Page) -> None:
    by_path = {other.path: other for other in PAGES}
    for target in page.links():
        if re.match(r"[a-z]+:", target):
            continue
        where, _, anchor = target.partition("#")
        path = (page.path.parent / where).resolve() if where else page.path
        assert path.exists(), f"{page.name} links to {target}"
        written_at_build = path in by_path and "```{gems-" in by_path[path].text
        if anchor and not written_at_build:
            assert anchor in by_path[path].anchors(), f"{page.name} links to {target}"


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_diagram_shows_the_actual_graph(tmp_path: Path) -> None:
    drawings = [block.source for block in Page(ROOT / "docs" / "concepts.md").blocks() if block.language == "mermaid"]
    printed = run(command_line("graph"), env=environment(tmp_path), check=True).stdout
    assert [drawing.strip() for drawing in drawings] == [printed.strip()]


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. auto\w+:: gems\.(\w+)$", text, re.MULTILINE)
    assert sorted(documented) == sorted(set(gems.__all__) - {"__version__"})


@pytest.mark.slow
def test_the_files_have_the_keys_that_are_described(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "reference" / "public-api.md").read_text(encoding="utf-8").split("## Files")[1]
    of_a_run, of_a_batch = (
        {key for row in part.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")}
        for part in text.split("`results.jsonl` has")
    )
    (tmp_path / "prompts.txt").write_text("two red cars\n")
    variables = environment(tmp_path / "home")
    printed = run(
        command_line("generate", "two red cars", "--seed", 7, "--json", "--quiet"), cwd=tmp_path, env=variables
    )
    assert set(json.loads(printed.stdout)) - {"paths"} == of_a_run
    run(command_line("batch", "prompts.txt", "--out", "results", "--quiet"), cwd=tmp_path, env=variables)
    row = json.loads((tmp_path / "results" / "results.jsonl").read_text())
    assert set(row) | {"error", "error_kind", "folder", "stopped_by_total"} == of_a_batch


def test_each_promise_of_the_threat_model_is_attacked_by_tests_that_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    promises = [
        promise
        for section in text.split("Defended:\n\n- ")[1:]
        for promise in section.partition("\n\n")[0].split("\n- ")
    ]
    assert len(promises) > 50
    assert "Defended: " not in text, "promises are a list"
    for promise in promises:
        named_tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise.partition("\n  Attacked by ")[2])
        assert named_tests, promise
        for file, name in named_tests:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
