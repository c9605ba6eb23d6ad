"""``python:MODULE:FACTORY`` names a custom model. The operator may name one; data may not.

Each test has its own module that leaves a trace when it is imported: a refused module is not even imported.
"""

from __future__ import annotations

import io
import json
import pickle
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from fakes import PaintGenerator
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from light_models import make_chat
from PIL import Image
from typer.testing import CliRunner
from typing_extensions import TypedDict

from gems.authority import CODE, NO_AUTHORITY
from gems.cli.arguments import make_context
from gems.cli.doctor import diagnose
from gems.cli.main import app
from gems.errors import BackendError, InputError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.tool import as_tool
from gems.memory.image_store import ImageStore
from gems.models.registry import init_image_generator, init_mllm
from gems.options import ChatOptions, GeneratorOptions
from gems.runs.record import ModelRecord
from gems.runs.threads import Thread, load_thread
from gems.serve.langserve_routes import AgentRequest
from gems.serve.settings import AcceptedSettings, ServiceSettings, context_of

BARE: dict[str, Any] = {"memory": False, "skills": False, "plan": False, "max_rounds": 2, "seed": 3, "inspectors": ()}
SMALL = ("--no-memory", "--no-skills", "--no-plan", "--max-rounds", "2", "--seed", "3", "--quiet")

SOURCE = """
from pathlib import Path

Path({trace!r}).touch()

from fakes import PaintGenerator
from light_models import make_chat

calls = []


class Mine(PaintGenerator):
    name = "mine"
    fingerprint = "f" * 64


def make(options):
    calls.append(options)
    return Mine()


class Painters:
    @staticmethod
    def small(options):
        return Mine()


def no_generator(options):
    return object()


def half_a_generator(options):
    class Half:
        name = "half"

        def generate(self, requests, *, on_step=None):
            return []

    return Half()


def broken(options):
    raise KeyError("no such\\nthing")


def refuses(options):
    from gems.errors import BackendError

    raise BackendError("its server is down")


nothing = None
"""


@dataclass(frozen=True)
class Canary:
    """A module that can be imported."""

    module: str
    trace: Path

    @property
    def name(self) -> str:
        return self("make")

    @property
    def chat(self) -> str:
        return self("make_chat")

    def __call__(self, factory: str) -> str:
        return f"python:{self.module}:{factory}"

    @property
    def sang(self) -> bool:
        """Whether it was imported."""
        return self.trace.exists()


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canary:
    folder = tmp_path / "modules"
    folder.mkdir()
    module = f"canary_{uuid.uuid4().hex}"
    (folder / f"{module}.py").write_text(SOURCE.format(trace=str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv(CODE, raising=False)
    return Canary(module, tmp_path / "imported")


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def gems(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def is_drawn(result: Any) -> bool:
    return len(result["attempts"]) > 0 and result["outcome"] in ("solved", "rounds")


def assert_refused(canary: Canary, text: str) -> None:
    """Assert a one-line error that names the module and a remedy, and that no code of the module ran."""
    [line] = [line for line in text.splitlines() if canary.module in line]
    assert "runs code" in line
    assert "command line" in line
    assert "build_graph(settings=...)" in line
    assert CODE in line
    assert not canary.sang


# --- names from the operator -----------------------------------------------------------------------------------------


def test_the_settings_of_a_graph_may_name_custom_models(canary: Canary, images: ImageStore) -> None:
    settings = {**BARE, "generator": canary.name, "mllm": canary.chat, "generator_options": {"steps": 4}}
    result = build_graph(settings=settings, images=images).invoke({"prompt": "two red cars"})
    assert is_drawn(result)
    assert json.loads(Image.open(io.BytesIO(images.read(result["image"]))).info["gems"])["model"] == "mine"
    assert import_module(canary.module).calls == [GeneratorOptions(steps=4)]  # once per process and set of options


def test_a_settings_context_and_a_tool_may_name_custom_models(canary: Canary, images: ImageStore) -> None:
    context = GemsContext(**BARE, generator=canary("Painters.small"), mllm=canary.chat)
    assert is_drawn(build_graph(settings=context, images=images).invoke({"prompt": "two red cars"}))
    tool = as_tool(settings={**BARE, "generator": canary.name, "mllm": canary.chat})
    assert json.loads(tool.invoke({"prompt": "two red cars"}))["images_made"] > 0


def test_the_command_line_may_name_custom_models(canary: Canary, tmp_path: Path) -> None:
    models = ("--mllm", canary.chat, "--generator", canary.name, "--verifier", "python:light_models:make_chat")
    result = gems("generate", "two red cars", *SMALL[:-1], *models, "--out", tmp_path / "out", "--json", code=1)
    record = json.loads(result.stdout)
    line = f"--resume {tmp_path / 'out' / record['thread']} {' '.join(models)}"
    assert line in result.stderr  # in this order, so that the line can be copied
    assert record["models"]["generator"] == {"name": canary.name, "fingerprint": "f" * 64}
    assert record["models"]["verifier"]["name"] == "python:light_models:make_chat"
    assert len(record["attempts"]) == 2


def test_the_environment_may_name_custom_models(
    canary: Canary, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, context = build_graph(images=images), {**BARE, "generator": canary.name, "mllm": canary.chat}
    monkeypatch.setenv(CODE, f"python:another:one, {canary.name}")
    with pytest.raises(InputError, match="make_chat"):
        graph.invoke({"prompt": "two red cars"}, context=context)
    assert not canary.sang
    monkeypatch.setenv(CODE, f"{canary.chat},{canary.name}")
    assert is_drawn(graph.invoke({"prompt": "two red cars"}, context=context))


def test_a_batch_runs_what_the_command_line_names(canary: Canary, tmp_path: Path) -> None:
    models = ("--generator", canary.name, "--mllm", canary.chat)
    (tmp_path / "p.txt").write_text("two red cars\na dog\n")
    flags = ("--no-skills", "--no-plan", "--max-rounds", 1, "--quiet", "--out", tmp_path / "out", "--json")
    assert json.loads(gems("batch", tmp_path / "p.txt", *models, *flags).stdout)["images"] == 2


def test_the_doctor_tries_what_the_command_line_names(canary: Canary) -> None:
    checks = {
        check.name: check
        for check in diagnose(make_context({"generator": canary.name, "mllm": canary.chat, "no_memory": True}))
    }
    assert checks["generator"].detail.startswith("mine ffffffffffff, 32 x 32")


def test_workers_in_other_processes_inherit_the_permission(canary: Canary) -> None:
    context = GemsContext(generator=canary.name).as_operator()
    worker_context = pickle.loads(pickle.dumps(context.model_copy(update={"seed": 1})))
    worker_context.authority.check_model(canary.name)
    assert not worker_context.authority.everything
    assert GemsContext.model_validate(context.model_dump()).authority == NO_AUTHORITY
    assert not canary.sang


# --- names from data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["generator", "mllm", "verifier"])
@pytest.mark.parametrize("form", ["context", "dictionary", "under gems", "object", "with a permission of its own"])
def test_a_context_may_not_name_code(canary: Canary, images: ImageStore, form: str, field: str) -> None:
    values = {**BARE, "mllm": canary.chat, "verifier": canary.chat, field: canary.name}
    context: Any = {
        "context": GemsContext(**values),
        "dictionary": values,
        "under gems": SimpleNamespace(gems=values, user="a parent's"),
        "object": SimpleNamespace(**values),
        "with a permission of its own": {**values, "_authority": {"code": [canary.name]}, "code": [canary.name]},
    }[form]
    graph = build_graph(images=images)
    with pytest.raises(InputError) as caught:
        graph.invoke({"prompt": "two red cars"}, context=context)
    assert_refused(canary, str(caught.value))


def test_settings_permit_what_they_name_and_nothing_else(canary: Canary, images: ImageStore) -> None:
    graph = build_graph(settings={**BARE, "generator": canary("Painters.small")}, images=images)
    with pytest.raises(InputError) as caught:
        graph.invoke({"prompt": "two red cars"}, context=GemsContext(mllm=canary.chat))
    assert_refused(canary, str(caught.value))


def test_objects_win_over_names_that_are_not_allowed(canary: Canary, images: ImageStore) -> None:
    graph = build_graph(mllm=make_chat(ChatOptions()), generator=PaintGenerator(), images=images)
    assert is_drawn(graph.invoke({"prompt": "two red cars"}, context=GemsContext(**BARE, generator=canary.name)))
    assert not canary.sang


def test_a_parent_graphs_context_may_not_name_code(canary: Canary, images: ImageStore) -> None:
    class Parents(TypedDict):
        prompt: str

    parent = StateGraph(Parents, context_schema=GemsContext)
    parent.add_node("draw", build_graph(images=images))
    parent.add_edge(START, "draw")
    parent.add_edge("draw", END)
    with pytest.raises(InputError) as caught:
        parent.compile().invoke({"prompt": "a dog"}, context=GemsContext(**BARE, generator=canary.name))
    assert_refused(canary, str(caught.value))


def test_a_resumed_run_may_not_name_code(canary: Canary, images: ImageStore) -> None:
    """The run starts with model objects and is resumed with a context that names code; its state grants nothing."""
    config: Any = {"configurable": {"thread_id": "t"}}
    saver, mllm = InMemorySaver(), make_chat(ChatOptions())
    first_graph = build_graph(checkpointer=saver, mllm=mllm, generator=PaintGenerator(), images=images)
    review = {**BARE, "review": "rounds"}
    assert first_graph.invoke({"prompt": "a dog"}, config, context=GemsContext(**review))["__interrupt__"]
    first_graph.update_state(config, {"generator": canary.name, "mllm": canary.chat})
    again = build_graph(checkpointer=saver, mllm=mllm, images=images)
    with pytest.raises(InputError) as caught:
        again.invoke(Command(resume={"action": "go_on"}), config, context={**review, "generator": canary.name})
    assert_refused(canary, str(caught.value))


def test_a_request_may_not_name_code(canary: Canary, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generator"):
        AgentRequest.model_validate({"prompt": "a dog", "context": {"generator": canary.name}})
    with pytest.raises(ValueError, match="generator"):
        AcceptedSettings.model_validate({"requested": {"generator": canary.name}})
    own = ServiceSettings(home=tmp_path, context=GemsContext(generator=canary.name).as_operator())
    context_of(own, "ann", AcceptedSettings()).check_authority()  # the service's own settings may
    assert not canary.sang


def test_a_record_that_names_code_is_replayed_only_with_permission(
    canary: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ("--generator", canary.name, "--mllm", canary.chat)
    record = json.loads(gems("generate", "two red cars", *SMALL, *models, "--out", tmp_path, "--json", code=1).stdout)
    folder = Path(record["paths"]["folder"])
    canary.trace.unlink()
    other = f"{canary.module}_copy"
    copy = Canary(other, canary.trace)
    module = tmp_path / "modules" / f"{canary.module}.py"
    (module.parent / f"{other}.py").write_text(module.read_text())
    record["models"]["generator"]["name"] = copy.name
    (folder / "run.json").write_text(json.dumps(record))

    assert_refused(copy, gems("replay", folder, code=2).stderr)
    message = gems("replay", folder, "--generator", canary.name, code=2).stderr
    assert f"the run was made with {copy.name}, not with {canary.name}" in message
    assert not copy.sang
    assert gems("replay", folder, "--generator", copy.name).exit_code == 0
    assert copy.sang
    monkeypatch.setenv(CODE, copy.name)
    assert gems("replay", folder).exit_code == 0


def test_a_run_that_names_code_is_resumed_only_with_permission(
    canary: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted_run(canary, tmp_path)
    assert_refused(canary, gems("generate", "--resume", run, "--quiet", code=2).stderr)
    half = gems("generate", "--resume", run, "--quiet", "--generator", canary.name, code=2)
    assert_refused(canary, half.stderr)
    strange = gems("generate", "--resume", run, "--quiet", "--generator", "python:os:getcwd", code=2).stderr
    assert f"run {run} was not begun with python:os:getcwd" in strange
    assert "leave out --generator" in gems("generate", "--resume", run, "--generator", "pocket", code=2).stderr
    assert not canary.sang
    models = ("--generator", canary.name, "--mllm", canary.chat)
    assert gems("generate", "--resume", run, "--quiet", *models, "--out", tmp_path, code=1).exit_code
    assert canary.sang

    second = interrupted_run(canary, tmp_path)
    monkeypatch.setenv(CODE, f"{canary.name},{canary.chat}")
    gems("generate", "--resume", second, "--quiet", "--out", tmp_path, code=1)


def interrupted_run(canary: Canary, folder: Path) -> str:
    """The file of a run that was killed at once, written without importing the module."""
    context = GemsContext(**BARE, generator=canary.name, mllm=canary.chat)
    models = {
        "mllm": ModelRecord(canary.chat, "ScriptedChatModel"),
        "generator": ModelRecord(canary.name, "f" * 64),
    }
    thread = Thread("two-red-cars-0a1b2c", "two red cars", context, folder, datetime.now(UTC), models)
    thread.save()
    assert load_thread(thread.id).context.authority == NO_AUTHORITY
    return thread.id


def test_a_batch_folder_may_not_name_code(canary: Canary, tmp_path: Path) -> None:
    """The command line decides what runs; a folder whose settings were edited is refused."""
    (tmp_path / "p.txt").write_text("two red cars\n")
    light = ("--generator", "python:light_models:make_generator", "--mllm", "python:light_models:make_chat")
    flags = ("--no-skills", "--no-plan", "--max-rounds", 1, "--quiet", "--out", tmp_path / "out")
    gems("batch", tmp_path / "p.txt", *light, *flags)
    path = tmp_path / "out" / "batch.json"
    settings = path.read_text()
    path.write_text(settings.replace("python:light_models:make_generator", canary.name))
    message = gems("batch", tmp_path / "p.txt", *light, *flags, code=2).stderr
    assert "batch.json was changed since the batch began" in message
    assert not canary.sang
    path.write_text(settings)
    message = gems("batch", tmp_path / "p.txt", "--generator", canary.name, *light[2:], *flags, code=2).stderr
    assert "other settings or models" in message


# --- invalid names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("gone", r"canary_\w+ has no gone$"),
        ("Painters.gone", r"has no Painters\.gone$"),
        ("nothing", "nothing is not callable; a factory takes the model's options$"),
        (
            "no_generator",
            "returned object, which is not an image generator: it has no name, fingerprint, edits, generate$",
        ),
        ("half_a_generator", "returned Half, which is not an image generator: it has no fingerprint, edits$"),
        ("broken", r"broken failed: KeyError: 'no such\\nthing'$"),
    ],
)
def test_a_bad_factory_gives_a_one_line_error(canary: Canary, factory: str, message: str) -> None:
    name = canary(factory)
    with pytest.raises(InputError, match=message) as caught:
        init_image_generator(name, authority=NO_AUTHORITY.allowing([name]))
    assert str(caught.value).startswith(name)
    assert len(str(caught.value).splitlines()) == 1


def test_errors_of_a_factory_are_passed_on(canary: Canary) -> None:
    with pytest.raises(BackendError, match="its server is down"):
        init_image_generator(canary("refuses"), authority=NO_AUTHORITY.allowing([canary("refuses")]))


def test_a_chat_factory_must_return_a_chat_model(canary: Canary) -> None:
    allowed = NO_AUTHORITY.allowing([canary.name])
    with pytest.raises(InputError, match=r"returned Mine, which is not a LangChain chat model"):
        init_mllm(canary.name, authority=allowed)


def test_a_missing_or_broken_module(tmp_path: Path, canary: Canary) -> None:
    name = "python:not_there_at_all:make"
    with pytest.raises(InputError, match=r"cannot import not_there_at_all \(ModuleNotFoundError.*PYTHONPATH"):
        init_image_generator(name, authority=NO_AUTHORITY.allowing([name]))
    (tmp_path / "modules" / f"{canary.module}_bad.py").write_text("1 / 0")
    name = f"python:{canary.module}_bad:make"
    with pytest.raises(InputError, match="ZeroDivisionError: division by zero"):
        init_image_generator(name, authority=NO_AUTHORITY.allowing([name]))


@pytest.mark.parametrize("name", ["python:", "python:a", "python:a:", "python::b", "python:a:b:c", "python:a b:c"])
def test_a_malformed_name(name: str) -> None:
    with pytest.raises(InputError, match="is not of the form python:MODULE:FACTORY"):
        init_image_generator(name, authority=NO_AUTHORITY.allowing([name]))


def test_a_cached_generator_is_still_refused_without_permission(canary: Canary) -> None:
    allowed = NO_AUTHORITY.allowing([canary.name])
    assert init_image_generator(canary.name, authority=allowed) is init_image_generator(canary.name, authority=allowed)
    canary.trace.unlink()
    with pytest.raises(InputError) as caught:
        init_image_generator(canary.name)
    assert_refused(canary, str(caught.value))
