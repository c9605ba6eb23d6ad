"""Only the operator names addresses, keys, folders, stores and code. Data that does so is refused, and never obeyed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread as PythonThread
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import PaintGenerator
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from gems.authority import (
    NO_AUTHORITY,
    OPERATOR,
    OperatorOnly,
    is_downloaded,
    is_file,
    names_more_than_a_model,
    operator_values,
    without_login,
)
from gems.errors import InputError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext, OpenToRequests
from gems.memory.image_store import ImageStore
from gems.models.registry import init_image_generator, init_mllm
from gems.options import ChatOptions, GeneratorOptions
from gems.runs.operator_settings import adopt, check_complete, operator_settings

BARE: dict[str, Any] = {"memory": False, "skills": False, "plan": False, "max_rounds": 1, "inspectors": (), "seed": 1}
SECRET = "sk-a-secret-of-the-operator"

FOREIGN: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "generator_options.base_url": lambda url, _: {
        "generator": "openai:x",
        "generator_options": {"base_url": f"{url}/v1"},
    },
    "generator_options.api_key": lambda *_: {"generator": "openai:x", "generator_options": {"api_key": SECRET}},
    "generator_options.trust_remote_code": lambda *_: {"generator_options": {"trust_remote_code": True}},
    "generator_options.workflow": lambda _, folder: {"generator_options": {"workflow": str(folder / "flow.json")}},
    "generator_options.quantization": lambda _, folder: {"generator_options": {"quantization": str(folder / "x.gguf")}},
    "generator_options.lora": lambda _, folder: {"generator_options": {"lora": (str(folder / "x.safetensors"),)}},
    "generator_options.vae": lambda _, folder: {"generator_options": {"vae": str(folder)}},
    "generator_options.config": lambda _, folder: {"generator_options": {"config": str(folder)}},
    "chat_options.base_url": lambda url, _: {"mllm": "openai:x", "chat_options": {"base_url": f"{url}/v1"}},
    "chat_options.api_key": lambda *_: {"mllm": "openai:x", "chat_options": {"api_key": SECRET}},
    "chat_options.extra_body": lambda *_: {"mllm": "openai:x", "chat_options": {"extra_body": {"model": "dear"}}},
    "chat_options.headers": lambda *_: {"mllm": "openai:x", "chat_options": {"headers": {"X-Key": SECRET}}},
    "memory_url": lambda _, folder: {"memory": True, "memory_url": str(folder / "memory")},
    "memory_limit": lambda *_: {"memory": True, "memory_limit": 7654},
    "memory_days": lambda *_: {"memory": True, "memory_days": 1e-9},
    "images_url": lambda _, folder: {"images_url": str(folder / "images")},
    "skills_dir": lambda _, folder: {"skills": True, "skills_dir": str(folder)},
    "generator": lambda url, _: {"generator": f"http:{url}/draw"},
    "mllm": lambda _, folder: {"mllm": f"transformers:{folder}"},
    "planner": lambda _, folder: {"plan": True, "planner": f"transformers:{folder}"},
    "decomposer": lambda _, folder: {"decomposer": f"transformers:{folder}"},
    "verifier": lambda *_: {"verifier": "transformers:./weights"},
    "refiner": lambda *_: {"refiner": "transformers:~/weights@main"},
    "embedder": lambda _, folder: {"memory": True, "embedder": f"huggingface:{folder}"},
}
"""Settings that data may not give, and foreign values for them, from an address and a folder."""


class Canary(HTTPServer):
    """A server that nobody may ask."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(f"{self.path} {self.headers.get('Authorization')}")
                self.send_error(404)

            do_POST = do_HEAD = do_GET  # noqa: N815 (http.server looks for these names)

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("GEMS_IMAGE_API_KEY", SECRET)
    server = Canary()
    thread = PythonThread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    folder = tmp_path / "foreign"
    folder.mkdir()
    return folder


def every_marked_path() -> set[str]:
    groups = {"": GemsContext, "generator_options.": GeneratorOptions, "chat_options.": ChatOptions}
    return {
        f"{prefix}{name}"
        for prefix, model in groups.items()
        for name, info in model.model_fields.items()
        if any(isinstance(mark, OperatorOnly) for mark in info.metadata)
    }


# --- which settings -------------------------------------------------------------------------------------------------


def test_each_setting_that_only_the_operator_gives_is_attacked_here() -> None:
    assert every_marked_path() == set(FOREIGN)


def test_no_setting_that_names_a_place_is_left_unmarked() -> None:
    """A new setting whose name or description speaks of an address, a key or a folder has to be marked."""
    words = ("url", "address", "key", "folder", "_dir", "code that", "path of", "file of", "file")
    groups = {"": GemsContext, "generator_options.": GeneratorOptions, "chat_options.": ChatOptions}
    speaking = {
        f"{prefix}{name}"
        for prefix, model in groups.items()
        for name, info in model.model_fields.items()
        if any(word in f"{name} {info.description}".lower() for word in words)
    }
    assert speaking - every_marked_path() == set()


def test_no_request_may_give_what_only_the_operator_gives() -> None:
    for info in GemsContext.model_fields.values():
        kinds = {type(mark) for mark in info.metadata}
        assert not kinds >= {OperatorOnly, OpenToRequests}


@pytest.mark.parametrize(
    ("name", "is_more"),
    [
        ("pocket", False),
        ("openai:gpt-5", False),
        ("diffusers:Tongyi-MAI/Z-Image-Turbo", True),
        ("diffusers:Tongyi-MAI/Z-Image-Turbo@main", True),
        ("transformers:Qwen/Qwen3-VL-4B-Instruct", True),
        ("ollama:qwen3-vl:8b", False),
        ("python:os:getcwd", True),
        ("http:gpu:8000/draw", True),
        ("http://gpu:8000/draw", True),
        ("https://gpu/draw", True),
        ("comfyui:gpu:8188", True),
        ("diffusers:/weights", True),
        ("diffusers:./weights@main", True),
        ("diffusers:..", True),
        ("transformers:~/weights", True),
        ("transformers:C:\\weights", True),
        ("huggingface:nobody/pickles", True),
        ("HuggingFace:nobody/pickles", True),
        (" huggingface : nobody/pickles", True),
        ("huggingface-pipeline:nobody/pickles", True),
        ("HUGGINGFACE-Pipeline:nobody/pickles", True),
        ("HTTP://gpu:8000/draw", True),
        ("Diffusers:/weights", True),
    ],
)
def test_which_names_hold_more_than_a_model(name: str, is_more: bool) -> None:
    assert names_more_than_a_model(name) is is_more


def test_a_repository_is_allowed_where_this_machine_has_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the same name is never taken for it, and another revision is another repository."""
    monkeypatch.chdir(tmp_path)
    names = ("diffusers:org/model", "transformers:org/model@v1", "diffusers:org/model@v2", "diffusers:org/other")
    repository = tmp_path / "hub" / "models--org--model"
    commit = "c0ffee" * 6 + "c0ff"
    for revision in ("main", "v1"):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    for file in ("model_index.json", "config.json"):
        (repository / "snapshots" / commit / file).write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert [is_downloaded(name) for name in names] == [True, True, False, False]
    for name in ("diffusers:org/model ", "transformers:\torg/model"):  # the names of other folders
        assert not is_downloaded(name)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not any(map(is_downloaded, names))
    assert is_file("org/model")


@pytest.mark.parametrize(
    "name", ["diffusers:nobody/nothing", "diffusers:sd-turbo@main", "diffusers:no / name", "diffusers:"]
)
def test_data_downloads_no_model(name: str) -> None:
    with pytest.raises(InputError, match="only whoever runs this program may download a model: give --generator"):
        GemsContext(generator=name).check_authority()
    with pytest.raises(InputError, match="only whoever runs this program may download a model: give --generator"):
        init_image_generator(name)
    with pytest.raises(InputError, match=f"--mllm transformers:{name.partition(':')[2]} on the command line"):
        GemsContext(mllm=name.replace("diffusers", "transformers")).check_authority()
    GemsContext(generator=name).as_operator().check_authority()


@pytest.mark.parametrize("provider", ["HuggingFace", "huggingface ", "HUGGINGFACE", "huggingface"])
def test_data_names_no_embedder_that_loads_weights(provider: str) -> None:
    with pytest.raises(InputError, match="as the embedder"):
        GemsContext(embedder=f"{provider}:nobody/pickles").check_authority()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("http:http://ann:pass@gpu:8000/draw", "http:http://gpu:8000/draw"),
        ("https://ann:p@ss@gpu/a@b", "https://gpu/a@b"),
        ("comfyui:ann:pass@gpu:8188", "comfyui:gpu:8188"),
        ("comfyui:http://gpu:8188", "comfyui:http://gpu:8188"),
        ("HTTPS://ann:pass@gpu/draw", "HTTPS://gpu/draw"),
        ("http://gpu:8000/draw?api_key=secret", "http://gpu:8000/draw"),
        ("http:http://ann:pass@gpu/draw?token=secret&n=1", "http:http://gpu/draw"),
        ("diffusers:org/model@main", "diffusers:org/model@main"),
        ("openai:me@model", "openai:me@model"),
    ],
)
def test_a_login_in_a_name_is_not_written_down(name: str, kept: str) -> None:
    assert without_login(name) == kept
    assert GemsContext(generator=name).model_dump()["generator"] == kept


# --- nothing is written down ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(set(FOREIGN) - {"generator", "mllm", "embedder", "planner", "decomposer"}))
def test_what_grants_is_never_written_down(canary: Canary, foreign: Path, path: str) -> None:
    context = GemsContext(**FOREIGN[path](canary.url, foreign)).as_operator()
    [value] = [v for v in operator_values(context) if v.path == path]
    written = json.dumps(context.model_dump(mode="json")) + context.model_dump_json() + repr(context.authority)
    group, _, name = path.rpartition(".")
    fields: Any = context.model_dump(mode="json")
    if value.kind != "model":
        assert value.text == "True" or value.text not in written
        assert name not in (fields[group] if group else fields) or name == "quantization"
        assert (path in operator_settings(context)) is not path.endswith("api_key")


def test_an_authority_does_not_show_what_it_holds() -> None:
    context = GemsContext(generator_options={"api_key": SECRET}).as_operator()  # type: ignore[arg-type]
    assert SECRET not in f"{context!r} {context} {context.authority!r}"


# --- nothing is obeyed ----------------------------------------------------------------------------------------------


def assert_refused(canary: Canary, foreign: Path, message: str, path: str) -> None:
    assert path.rpartition(".")[2] in message
    assert "only whoever runs this program" in message
    assert "\n" not in message
    assert SECRET not in message
    assert canary.requests == []
    assert list(foreign.iterdir()) == []


@pytest.mark.parametrize("form", ["dictionary", "under gems", "object", "attributes", "with a permission of its own"])
@pytest.mark.parametrize("path", sorted(FOREIGN))
def test_a_context_may_not_give_what_only_the_operator_gives(
    canary: Canary, foreign: Path, tmp_path: Path, path: str, form: str
) -> None:
    values = BARE | FOREIGN[path](canary.url, foreign)
    contexts: dict[str, Any] = {
        "dictionary": values,
        "under gems": SimpleNamespace(gems=values, images_url="of the parent"),
        "object": GemsContext(**values),
        "attributes": SimpleNamespace(**values),
        "with a permission of its own": {**values, "_authority": OPERATOR, "authority": OPERATOR, "everything": True},
    }
    images = None if path == "images_url" else ImageStore(tmp_path / "images")
    graph = build_graph(images=images)
    with pytest.raises(InputError) as caught:
        graph.invoke({"prompt": "two red cars"}, context=contexts[form])
    assert_refused(canary, foreign, str(caught.value), path)


def test_a_password_in_a_context_is_refused_and_not_shown(tmp_path: Path) -> None:
    settings = {**BARE, "memory": True, "memory_url": f"postgresql://ann:{SECRET}@127.0.0.1:9/gems"}
    for context in (settings, SimpleNamespace(gems=settings)):
        with pytest.raises(InputError, match="memory_url") as caught:
            build_graph(images=ImageStore(tmp_path / "images")).invoke({"prompt": "two red cars"}, context=context)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("path", sorted(FOREIGN))
def test_a_parent_graphs_context_may_not(canary: Canary, foreign: Path, path: str) -> None:
    class Prompt(TypedDict):
        prompt: str

    parent = StateGraph(Prompt, context_schema=dict)
    parent.add_node("gems", build_graph())
    parent.add_edge(START, "gems")
    parent.add_edge("gems", END)
    with pytest.raises(InputError) as caught:
        parent.compile().invoke({"prompt": "a dog"}, context=BARE | FOREIGN[path](canary.url, foreign))
    assert_refused(canary, foreign, str(caught.value), path)


@pytest.mark.parametrize("path", ["generator_options.base_url", "chat_options.base_url", "generator"])
def test_a_resumed_threads_context_may_not(canary: Canary, foreign: Path, tmp_path: Path, path: str) -> None:
    graph = build_graph(checkpointer=InMemorySaver(), images=ImageStore(tmp_path / "images"))
    config: Any = {"configurable": {"thread_id": "t"}}
    context = {**BARE, "review": "end"}
    assert graph.invoke({"prompt": "two red cars"}, config, context=context)["__interrupt__"]
    with pytest.raises(InputError) as caught:
        graph.invoke(Command(resume={"action": "reject"}), config, context=context | FOREIGN[path](canary.url, foreign))
    assert_refused(canary, foreign, str(caught.value), path)


def test_settings_allow_what_they_name_and_nothing_else(canary: Canary, tmp_path: Path) -> None:
    other = {**BARE, "generator": "openai:x", "generator_options": {"base_url": "http://192.0.2.1/v1"}}
    graph = build_graph(images=ImageStore(tmp_path / "i"), settings={"chat_options": {"base_url": f"{canary.url}/v1"}})
    with pytest.raises(InputError, match=r"generator_options\.base_url"):
        graph.invoke({"prompt": "a dog"}, context=other)
    with pytest.raises(InputError, match=r"chat_options.api_key|generator_options"):
        graph.invoke({"prompt": "a dog"}, context=other | {"chat_options": {"base_url": "http://192.0.2.1/v1"}})
    assert canary.requests == []


def test_the_operator_may(canary: Canary, tmp_path: Path) -> None:
    """Each way to say that settings are one's own: the address is then asked, with the operator's key."""
    options = {"base_url": f"{canary.url}/v1", "timeout": 5.0}
    settings = {**BARE, "generator": "openai:x", "generator_options": options}
    images = ImageStore(tmp_path / "images")
    build_graph(images=images, settings=settings).invoke({"prompt": "a dog"})
    build_graph(images=images).invoke({"prompt": "a dog"}, context=GemsContext(**settings).as_operator())
    assert len(canary.requests) >= 2
    assert all(SECRET in request for request in canary.requests)


def test_objects_take_the_place_of_names_that_are_not_allowed(canary: Canary, tmp_path: Path) -> None:
    graph = build_graph(generator=PaintGenerator(), images=ImageStore(tmp_path / "images"))
    foreign = {"generator": f"http:{canary.url}", "images_url": str(tmp_path / "elsewhere")}
    graph.invoke({"prompt": "two red cars"}, context=BARE | foreign)
    assert canary.requests == []
    assert not (tmp_path / "elsewhere").exists()


def test_models_are_made_only_with_authority(canary: Canary) -> None:
    image_options = GeneratorOptions(base_url=f"{canary.url}/v1")
    chat_options = ChatOptions(base_url=f"{canary.url}/v1")
    for authority in (NO_AUTHORITY, NO_AUTHORITY.allowing(["openai:x", canary.url])):
        with pytest.raises(InputError, match=r"generator_options\.base_url"):
            init_image_generator("openai:x", image_options, authority)
        with pytest.raises(InputError, match=r"chat_options\.base_url"):
            init_mllm("openai:x", chat_options, authority)
    assert init_image_generator("openai:x", image_options, OPERATOR).name == "openai:x"
    with pytest.raises(InputError, match=r"generator_options\.base_url"):  # one that exists already
        init_image_generator("openai:x", image_options)


# --- what a record leaves out -----------------------------------------------------------------------------------------


def test_settings_of_data_take_what_grants_from_the_operator_alone() -> None:
    data = GemsContext(
        generator="http:http://gpu/draw",
        generator_options={"base_url": "http://evil/v1", "steps": 7},  # type: ignore[arg-type]
        seed=3,
        images_url="/evil",
    )
    operator = GemsContext(
        generator="http:http://ann:pass@gpu/draw",
        generator_options={"base_url": "http://mine/v1", "steps": 9},  # type: ignore[arg-type]
        seed=4,
        images_url="/mine",
    ).as_operator()
    settings = adopt(data, operator)
    settings.check_authority()
    assert (settings.generator, settings.images_url) == ("http:http://ann:pass@gpu/draw", "/mine")
    assert settings.generator_options.base_url == "http://mine/v1"
    assert (settings.seed, settings.generator_options.steps) == (3, 7)
    with pytest.raises(InputError, match="http:http://gpu/draw"):
        adopt(data, GemsContext().as_operator()).check_authority()


@pytest.mark.parametrize(
    "path", ["seed.x", "generator_options.nothing", "nothing", "generator_options.steps", ".", "a.b.c"]
)
def test_a_record_that_left_out_what_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="which no record keeps"):
        check_complete(GemsContext(), [path], "this run")
