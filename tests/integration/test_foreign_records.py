"""A foreign run folder, thread file or database decides no address, and nothing that is read, run or written."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from forked import gems_here
from PIL import Image
from shared_servers import needs

from gems.database import database_pool
from gems.errors import InputError
from gems.models.pocket.weights import folder_fingerprint
from gems.runs.threads import _database_records, load_thread

KEY = "sk-the-operators-own-key"
QUICK = ("--no-memory", "--no-skills", "--no-plan", "--max-rounds", "1", "--seed", "3", "--quiet", "--json")
Json = dict[str, Any]


def gems(home: Path, *arguments: object, code: int | None = None, **variables: str) -> Any:
    keys = {"OPENAI_API_KEY": KEY, "GEMS_IMAGE_API_KEY": KEY}
    result = gems_here(*arguments, home=home, **{**keys, **variables})
    assert code in (None, result.returncode), result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert KEY not in result.stderr + result.stdout
    return result


def requests_to(server: str, behaviour: str) -> list[Json]:
    """What a behaviour of the image server was asked for: the first part of each path names it."""
    with urlopen(f"{server}/log") as answer:
        entries: list[Json] = json.load(answer)["seen"]
    return [entry for entry in entries if entry["name"] == behaviour]


@pytest.fixture(scope="module")
def own_run(image_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the operator's own, drawn by a server."""
    tmp_path = tmp_path_factory.mktemp("own")
    options = ("--generator", "openai:painter", "--generator-option", f"base_url={image_server}/fine~own/v1")
    result = gems(tmp_path / "home", "generate", "two red cars", *QUICK, *options, "--out", tmp_path / "out")
    return Path(json.loads(result.stdout)["paths"]["folder"])


def changed(folder: Path, to: Path, change: Callable[[Json], object]) -> Path:
    """A copy of a run's folder, as a stranger would send it, with a changed record."""
    shutil.copytree(folder, to)
    record = json.loads((to / "run.json").read_text())
    change(record)
    (to / "run.json").write_text(json.dumps(record))
    return to


def strangers_settings(server: str, folder: Path) -> dict[str, Callable[[Json], object]]:
    """Changes of a record that would have this machine call a stranger, load a stranger's code, or read a folder."""

    def option(name: str, value: object) -> Callable[[Json], object]:
        return lambda record: record["settings"]["generator_options"].update({name: value})

    def generator(name: str) -> Callable[[Json], object]:
        def change(record: Json) -> None:
            record["models"]["generator"]["name"] = record["settings"]["generator"] = name
            record["operator_settings"] = []

        return change

    return {
        "base_url": option("base_url", f"{server}/fine~stranger/v1"),
        "api_key": option("api_key", "sk-of-the-stranger"),
        "trust_remote_code": option("trust_remote_code", True),
        "workflow": option("workflow", str(folder / "flow.json")),
        "quantization": option("quantization", str(folder / "weights.gguf")),
        "lora": option("lora", [str(folder / "style.safetensors")]),
        "vae": option("vae", str(folder)),
        "config": option("config", str(folder)),
        "a single file": generator(f"diffusers:{folder / 'model.safetensors'}"),
        "http": generator(f"http:{server}/fine~stranger/draw"),
        "comfyui": generator(f"comfyui:{server}/fine~stranger"),
        "diffusers": generator(f"diffusers:{folder}"),
        "a relative folder": generator("diffusers:./weights"),
        "a repository": generator("diffusers:stranger/weights"),
        "python": generator("python:os:getcwd"),
    }


CHANGES = sorted(strangers_settings("", Path()))


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_replaying_a_strangers_run_calls_reads_and_runs_nothing(
    own_run: Path, image_server: str, tmp_path: Path, change: str
) -> None:
    code = tmp_path / "weights"
    code.mkdir()
    (code / "model_index.json").write_text(json.dumps({"_class_name": ["own", "Own"]}))
    (code / "own.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    folder = changed(own_run, tmp_path / "sent", strangers_settings(image_server, code)[change])
    result = gems(tmp_path / "home", "replay", folder, code=2)
    assert result.stderr.count("\n") == 1
    assert "whoever runs this program may" in result.stderr
    assert requests_to(image_server, "fine~stranger") == []
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.slow
def test_a_record_of_a_strangers_own_run_calls_nobody(image_server: str, tmp_path: Path) -> None:
    """Nothing in it was changed: the address that it names is the one that drew it."""
    address = f"{image_server}/fine~theirs/v1"
    options = ("--generator", "openai:painter", "--generator-option", f"base_url={address}")
    theirs = gems(tmp_path / "theirs", "generate", "two red cars", *QUICK, *options, "--out", tmp_path / "out")
    folder = changed(
        Path(json.loads(theirs.stdout)["paths"]["folder"]),
        tmp_path / "sent",
        lambda record: record["settings"]["generator_options"].update(base_url=address),
    )
    before = len(requests_to(image_server, "fine~theirs"))
    assert before > 0
    gems(tmp_path / "home", "replay", folder, code=2)
    gems(tmp_path / "home", "replay", folder, "--generator", "openai:painter", code=2)
    assert len(requests_to(image_server, "fine~theirs")) == before


def code_that_shows(folder: Path, trace: Path) -> dict[str, str]:
    """A folder of weights with code that leaves a trace when it runs. Returns the model as a record names it."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": ["own", "Own"]}))
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    return {"name": f"diffusers:{folder}", "fingerprint": folder_fingerprint(folder)}


@pytest.mark.slow
def test_code_beside_a_strangers_weights_is_not_run(own_run: Path, tmp_path: Path) -> None:
    """The record names the weights as they are, and says that their code may run."""
    model = code_that_shows(tmp_path / "weights", tmp_path / "it-ran")

    def change(record: Json) -> None:
        record["models"]["generator"] = model
        record["settings"]["generator"] = model["name"]
        record["settings"]["generator_options"] = {"trust_remote_code": True}
        record["operator_settings"] = []

    folder = changed(own_run, tmp_path / "sent", change)
    gems(tmp_path / "home", "replay", folder, code=2)
    gems(tmp_path / "home", "replay", folder, "--generator", model["name"], code=2)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.slow
def test_code_beside_other_weights_is_not_run_when_a_run_is_resumed(tmp_path: Path) -> None:
    """The chat model is the one of the record; the weights of the generator are not."""
    own = gems(tmp_path / "own", "generate", "two red cars", *QUICK, "--out", tmp_path / "out")
    record = json.loads((Path(json.loads(own.stdout)["paths"]["folder"]) / "run.json").read_text())
    model = code_that_shows(tmp_path / "weights", tmp_path / "it-ran")
    context = {"generator": model["name"], "generator_options": {"trust_remote_code": True}}
    models = {"mllm": record["models"]["mllm"], "generator": {**model, "fingerprint": "e" * 64}}
    out = str(tmp_path / "out")
    run = thread_file(tmp_path / "home", tmp_path, {"context": context, "models": models, "out": out})
    gems(tmp_path / "home", "generate", "--resume", run, "--out", tmp_path / "out", code=2)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.slow
def test_a_run_is_replayed_at_the_address_that_the_command_line_names(
    own_run: Path, image_server: str, tmp_path: Path
) -> None:
    record = json.loads((own_run / "run.json").read_text())
    assert "base_url" not in record["settings"]["generator_options"]
    assert record["operator_settings"] == ["generator_options.base_url"]
    assert image_server not in (own_run / "run.json").read_text()
    with Image.open(own_run / "round-1-0.png") as image:
        assert image_server not in str(image.info)
    refused = gems(tmp_path / "home", "replay", own_run, code=2).stderr
    assert "--generator-option base_url=ADDRESS, which no record keeps" in refused
    again = ("--generator-option", f"base_url={image_server}/fine~own/v1")
    assert gems(tmp_path / "home", "replay", own_run, *again, "--json", code=0).stdout.count("true") == 2
    other = gems(tmp_path / "home", "replay", own_run, "--generator-option", "base_url=http://192.0.2.1/v1", code=2)
    assert "other weights" in other.stderr
    more = gems(tmp_path / "home", "replay", own_run, *again, "--generator-option", "steps=4", code=2).stderr
    assert "--generator-option steps: the run was made with steps=None; leave it out" in more
    assert "leave --generator out" in gems(tmp_path / "home", "replay", own_run, "--generator", "pocket", code=2).stderr


def thread_file(home: Path, tmp_path: Path, fields: Json) -> str:
    """A thread file of a run that was stopped at once, with changed fields, as a stranger would send it."""
    context = {"memory": False, "skills": False, "plan": False, "max_rounds": 1, "seed": 3}
    content: Json = {
        "prompt": "two red cars",
        "context": {**context, **fields.pop("context", {})},
        "started": "2026-01-01T00:00:00+00:00",
        "models": {
            "mllm": {"name": "pocket", "fingerprint": "f" * 64},
            "generator": {"name": "pocket", "fingerprint": "f" * 64},
        },
        **fields,
    }
    path = home / "threads" / "two-red-cars-0a1b2c.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path.stem


@pytest.mark.slow
@pytest.mark.parametrize(
    "context",
    [
        {"generator": "openai:x", "generator_options": {"base_url": "SERVER/fine~resumed/v1"}},
        {"mllm": "openai:x", "chat_options": {"base_url": "SERVER/fine~resumed/v1"}},
        {"generator_options": {"trust_remote_code": True}},
        {"generator": "http:SERVER/fine~resumed/draw"},
        {"verifier": "transformers:FOLDER/weights"},
        {"generator": "diffusers:stranger/weights"},
        {"memory": True, "embedder": "HuggingFace:stranger/weights"},
        {"memory": True, "memory_url": "FOLDER/memory"},
        {"images_url": "FOLDER/images"},
        {"images_url": "http://SERVER/fine~resumed/"},
        {"skills": True, "skills_dir": "FOLDER"},
    ],
    ids=lambda context: "-".join(context),
)
def test_resuming_a_strangers_run_calls_reads_and_writes_nothing(
    image_server: str, tmp_path: Path, context: Json
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    text = json.dumps(context).replace("SERVER", image_server).replace("FOLDER", str(folder))
    run = thread_file(tmp_path / "home", tmp_path, {"context": json.loads(text), "out": str(folder / "out")})
    result = gems(tmp_path / "home", "generate", "--resume", run, "--out", tmp_path / "out", code=2)
    assert result.stderr.removeprefix("loading the models\n").count("\n") == 1
    assert "only whoever runs this program may" in result.stderr
    assert requests_to(image_server, "fine~resumed") == []
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_strangers_thread_does_not_say_where_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = thread_file(tmp_path / "home", tmp_path, {"out": str(tmp_path / "foreign"), "out_mark": "0" * 16})
    result = gems(tmp_path / "home", "generate", "--resume", run, code=2)
    assert "begun with another --out, which no record keeps: give it again, or give the run's folder" in result.stderr
    assert not (tmp_path / "foreign").exists()


@pytest.mark.slow
def test_weights_are_compared_before_any_are_loaded(tmp_path: Path) -> None:
    """A record with other fingerprints is refused without loading what it names, even where that is allowed."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model_index.json").write_text(json.dumps({"_class_name": ["own", "Own"]}))
    (weights / "own.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    context = {"generator": f"diffusers:{weights}"}
    models = {
        "generator": {"name": f"diffusers:{weights}", "fingerprint": "e" * 64},
        "mllm": {"name": "pocket", "fingerprint": "e" * 64},
    }
    run = thread_file(
        tmp_path / "home",
        tmp_path,
        {"context": context, "models": models, "operator_settings": ["generator_options.trust_remote_code"]},
    )
    allowed = ("--generator", f"diffusers:{weights}", "--generator-option", "trust_remote_code=true")
    result = gems(tmp_path / "home", "generate", "--resume", run, *allowed, "--out", tmp_path / "out", code=2)
    assert "other weights would make another run" in result.stderr
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.slow
def test_a_run_is_resumed_with_the_options_that_its_first_line_shows(image_server: str, tmp_path: Path) -> None:
    skills = tmp_path / "my skills"
    skills.mkdir()
    options = [
        *("--generator", "openai:painter", "--generator-option", f"base_url={image_server}/fine~again/v1"),
        *("--generator-option", f"api_key={KEY}x", "--skills-dir", str(skills), "--images", str(tmp_path / "images")),
        *("--out", str(tmp_path / "out folder")),
    ]
    first = gems(tmp_path / "home", "generate", "two red cars", *QUICK[:-2], *options, "--json", code=1)
    [line] = [line for line in first.stderr.splitlines() if line.startswith("run ")]
    shown = shlex.split(line.partition("to resume it: gems ")[2])
    run = Path(shown[2]).name
    saved = json.loads((tmp_path / "home" / "threads" / f"{run}.json").read_text())
    assert saved["operator_settings"] == ["generator_options.base_url", "images_url", "skills_dir"]
    assert not [text for text in (image_server, str(tmp_path), KEY) if text in json.dumps(saved)]
    needed = gems(tmp_path / "home", "generate", "--resume", run, code=2).stderr
    assert "which no record keeps" in needed
    again = gems(tmp_path / "home", *shown, "--json", code=1)
    assert "this run had ended already" in again.stderr
    other = [*shown, "--chat-option", f"base_url={image_server}/fine~again/v1"]
    assert "was not begun with --chat-option base_url=ADDRESS" in gems(tmp_path / "home", *other, code=2).stderr
    steps = gems(tmp_path / "home", *shown, "--generator-option", "steps=4", code=2).stderr
    assert "leave out --generator-option steps" in steps


@needs("postgres")
def test_a_strangers_thread_in_a_database_is_not_obeyed(database: str, image_server: str, tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    memory = ("--memory", database)
    run = json.loads(gems(home, "generate", "two red cars", *QUICK[1:], *memory, "--out", tmp_path / "out").stdout)[
        "thread"
    ]
    with _database_records(database) as store:
        value = dict(store.get(("gems", "threads"), run).value)
        assert database not in json.dumps(value)
        value["context"] |= {"generator": "openai:x", "generator_options": {"base_url": f"{image_server}/fine~db/v1"}}
        store.put(("gems", "threads"), run, value, index=False)
    result = gems(other, "generate", "--resume", run, *memory, "--out", tmp_path / "out2", code=2)
    assert "generator_options.base_url" in result.stderr
    assert requests_to(image_server, "fine~db") == []


@needs("postgres")
@pytest.mark.parametrize("content", ["null", "[]", '"x"', "{}", '{"prompt": 1e5000}'])
def test_a_damaged_thread_in_a_database_is_told_of_the_database(database: str, content: str) -> None:
    with _database_records(database) as store:
        store.put(("gems", "threads"), "two-cats-1a2b3c", {"prompt": ""}, index=False)
    with database_pool(database) as pool, pool.connection() as connection:
        connection.execute("UPDATE store SET value = %s::jsonb WHERE prefix = 'gems.threads'", (content,))
    with pytest.raises(InputError, match="the record of two-cats-1a2b3c in the database is damaged") as caught:
        load_thread("two-cats-1a2b3c", database)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"edited_from": "0" * 64}, "an edit of an image of another run"),
        ({"seed": 2**70}, "seeds are from 0 to"),
        ({"seed": -1}, "seeds are from 0 to"),
        ({"prompt": "a \ud800 car"}, "surrogate pair"),
    ],
)
def test_an_attempt_that_no_run_can_have_is_told_before_anything_is_drawn(
    own_run: Path, tmp_path: Path, change: Json, says: str
) -> None:
    folder = changed(own_run, tmp_path / "sent", lambda record: record["attempts"][0].update(change))
    assert says in gems(tmp_path / "home", "replay", folder, code=2).stderr


@pytest.mark.slow
def test_a_record_that_is_nested_too_deeply_is_told(own_run: Path, tmp_path: Path) -> None:
    folder = changed(own_run, tmp_path / "sent", lambda record: None)
    (folder / "run.json").write_text('{"schema": 1, "a": ' + "[" * 10**5)
    assert "nested too deeply" in gems(tmp_path / "home", "replay", folder, code=2).stderr


@pytest.mark.slow
def test_a_strangers_thread_does_not_say_whose_memory_is_used(tmp_path: Path) -> None:
    run = thread_file(tmp_path / "home", tmp_path, {"context": {"memory": True, "user": "ann"}})
    options = ("--resume", run, "--out", tmp_path / "out")
    assert "give --user ann" in gems(tmp_path / "home", "generate", *options, code=2).stderr
    assert "other weights" in gems(tmp_path / "home", "generate", *options, "--user", "ann", code=2).stderr
    assert not (tmp_path / "home" / "memory").exists()
