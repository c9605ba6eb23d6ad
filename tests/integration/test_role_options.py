"""Chat options of single roles: on the command line, in a run, in its record, and when it is repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chatting import ChatEndpoint
from forked import gems_here

from gems.cli.doctor import diagnose
from gems.errors import InputError
from gems.graph.builder import build_graph
from gems.graph.context import ROLES, GemsContext
from gems.graph.state import GemsInput
from gems.memory.image_store import ImageStore
from gems.models.option_effects import RefusedOptionsError
from gems.nodes.resources import check_options
from gems.options import ChatOptions, RoleOptions

pytestmark = pytest.mark.slow

TEAM = "a-secret-of-the-team"


def test_roles_and_their_options_have_the_same_names() -> None:
    assert tuple(RoleOptions.model_fields) == ROLES


def test_a_role_is_asked_with_its_own_options(chat_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server, temperature=0.1, max_tokens=900)
    own = RoleOptions(verifier=ChatOptions(temperature=0.9, reasoning_effort="low", headers={"X-Team": TEAM}))
    context = GemsContext.model_validate(chat.context().model_dump() | {"chat_options": chat.options})
    context = context.model_copy(update={"role_options": own}).as_operator()
    output = build_graph(images=ImageStore(tmp_path)).invoke(GemsInput(prompt="two red cars"), context=context)
    assert output["outcome"] == "solved"
    seen = {e["form"]: (e["request"]["temperature"], e["request"].get("reasoning_effort"), e["team"]) for e in chat.log}
    assert seen == {"Plan": (0.1, None, None), "Requirements": (0.1, None, None), "Verdicts": (0.9, "low", TEAM)}
    assert all(e["request"].get("max_tokens", e["request"].get("max_completion_tokens")) == 900 for e in chat.log)


def test_doctor_asks_the_servers_that_runs_ask(chat_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each role that is called in its own way is tried so, whatever the models are called."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    common, own = ChatEndpoint(chat_server), ChatEndpoint(chat_server, structured="text")
    settings = {"mllm": "pocket", "generator": "pocket", "memory": False}
    context = GemsContext(**settings, verifier="openai:pocket", role_options=RoleOptions(verifier=own.options))
    checks = {check.name: check for check in diagnose(context.as_operator())}
    assert checks["vision chat model"].ok, checks["vision chat model"].detail
    assert "as text" in checks["vision chat model"].detail
    assert [entry["form"] for entry in own.log] == ["Verdicts"]
    dead = RoleOptions(planner=ChatOptions(base_url="http://127.0.0.1:9/v1", timeout=1), refiner=own.options)
    context = GemsContext(**settings | {"mllm": "openai:pocket"}, chat_options=common.options, role_options=dead)
    checks = {check.name: check for check in diagnose(context.as_operator())}
    assert checks["vision chat model"].ok
    assert not checks["planner"].ok
    assert checks["refiner"].ok
    assert "decomposer" not in str(list(checks)), "it is called as the verifier is, which has been tried"
    assert [len(common.log), len(own.log)] == [1, 2]


def test_what_a_record_keeps_of_a_role_is_what_was_given() -> None:
    own = RoleOptions(verifier=ChatOptions(timeout=9.0, base_url="http://127.0.0.1:9/v1", headers={"X-Team": TEAM}))
    context = GemsContext(role_options=own, chat_options=ChatOptions(image_size=256))
    written = context.model_dump_json()
    assert TEAM not in written
    assert "127.0.0.1:9" not in written
    read = GemsContext.model_validate_json(written)
    assert json.loads(written)["role_options"]["verifier"] == {"timeout": 9.0}
    assert read.options_of("verifier") == ChatOptions(image_size=256, timeout=9.0)
    assert read.options_of("planner") == ChatOptions(image_size=256)


def test_a_foreign_address_of_a_role_is_refused() -> None:
    context = {"role_options": {"verifier": {"base_url": "http://evil.example/v1"}}, "verifier": "openai:x"}
    with pytest.raises(InputError, match=r"role_options\.verifier\.base_url"):
        build_graph().invoke({"prompt": "two red cars"}, context=context)  # type: ignore[arg-type]


def test_an_option_that_a_roles_own_model_ignores_is_refused() -> None:
    context = GemsContext(role_options=RoleOptions(verifier=ChatOptions(temperature=0.5)))
    with pytest.raises(RefusedOptionsError, match="temperature"):
        check_options(context)


def test_the_command_line_gives_a_role_its_options(chat_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server)
    words = ["generate", "two red cars", "--mllm", "openai:pocket", "--no-memory", "--out", tmp_path / "out", "--json"]
    common = {"base_url": chat.options.base_url, "api_key": "sk-x", "temperature": 0.1}
    own = {"verifier.temperature": 0.9, "verifier.headers": json.dumps({"X-Team": TEAM})}
    words += [f"--chat-option={name}={value}" for name, value in {**common, **own}.items()]
    result = gems_here(*words, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr
    assert TEAM not in result.stdout + result.stderr
    assert {(e["form"], e["request"]["temperature"], e["team"]) for e in chat.log} == {
        ("Plan", 0.1, None),
        ("Requirements", 0.1, None),
        ("Verdicts", 0.9, TEAM),
    }
    [record] = (tmp_path / "out").rglob("run.json")
    assert TEAM not in record.read_text()
    run = record.parent.name
    refused = gems_here(
        "generate",
        "--resume",
        run,
        "--out",
        tmp_path / "out",
        "--chat-option=verifier.timeout=3",
        home=tmp_path / "home",
    )
    assert refused.returncode == 2
    assert "--chat-option verifier.timeout" in refused.stderr


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("verifier.colour=red", "--chat-option verifier.colour: unknown option; choose from: base_url"),
        ("judge.timeout=3", "--chat-option judge: unknown option; choose from: planner, decomposer"),
        ("headers=X-Team", "--chat-option headers: give a JSON object"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(option: str, says: str, tmp_path: Path) -> None:
    result = gems_here("generate", "x", f"--chat-option={option}", home=tmp_path)
    assert result.returncode == 2
    assert says in " ".join(result.stderr.split())
