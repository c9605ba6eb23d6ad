"""The operator's settings of a LangGraph server, and what they leave to its clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gems.errors import InputError
from gems.graph.builder import compile_graph
from gems.graph.client_rules import ClientRules, rules_from_environment
from gems.graph.context import GemsContext, open_settings
from gems.nodes.resources import Resources


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'generator = "pocket-large"\nmax_rounds = 2\n[budget]\nimages = 4\n'),
        ("a.json", '{"generator": "pocket-large", "max_rounds": 2, "budget": {"images": 4}}'),
    ],
)
def test_the_operator_fixes_settings_in_a_file(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setenv("GEMS_SETTINGS", str(tmp_path / name))
    rules = rules_from_environment()
    assert (rules.settings.generator, rules.settings.budget.images) == ("pocket-large", 4)
    assert set(rules.names) == set(open_settings()) - {"max_rounds", "budget"}
    assert set(rules.schema.model_fields) == set(rules.names)
    with pytest.raises(InputError, match="the operator of this server has fixed max_rounds"):
        rules.check({"context": {"max_rounds": 5}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_round = 2", "unknown setting 'max_round': did you mean 'max_rounds'"),
        ("max_rounds = 0", "the setting max_rounds is 0"),
        ('mllm = "nope"', "unknown chat model 'nope'"),
        ("max_rounds", "is no TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(
    text: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("GEMS_SETTINGS", str(file))
    with pytest.raises(InputError) as caught:
        rules_from_environment()
    assert str(caught.value).startswith(f"GEMS_SETTINGS={file}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["1", "true", "YES", "0", "false", "", "no"])
def test_clients_are_trusted_only_by_a_word_for_it(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMS_TRUST_CLIENTS", word)
    assert rules_from_environment().trusts_clients == (word in ("1", "true", "YES"))
    monkeypatch.setenv("GEMS_TRUST_CLIENTS", "maybe")
    with pytest.raises(InputError, match="GEMS_TRUST_CLIENTS=maybe: give 1"):
        rules_from_environment()


def test_the_graph_itself_takes_nothing_else(tmp_path: Path) -> None:
    """The server drops what is not in the schema; the graph would not take it either."""
    fixed = GemsContext(max_rounds=1, memory=False, images_url=str(tmp_path / "own")).as_operator()
    rules = ClientRules(fixed)
    graph: Any = compile_graph(Resources(settings=fixed), context_schema=rules.schema)
    theirs = {"seed": 7, "max_rounds": 9, "images_url": str(tmp_path / "theirs"), "mllm": "python:os:system"}
    out = graph.invoke({"prompt": "two red cars"}, context={**theirs, "plan": None})
    assert out["attempts"][0].seed == 7
    assert len(out["attempts"]) == 1
    assert out["image"].uri.startswith((tmp_path / "own").as_uri())
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("place", [{}, {"input": {"prompt": "two red cars"}}])
def test_no_client_makes_the_server_call_langsmith(place: dict[str, Any]) -> None:
    rules = ClientRules(GemsContext())
    for request in (place | {"feedback_keys": ["liked"]}, [{"params": place | {"feedback_keys": "liked"}}]):
        with pytest.raises(InputError, match="call LangSmith"):
            rules.check(request)
        ClientRules(GemsContext(), trusts_clients=True).check(request)
    for nothing in (None, []):
        rules.check(place | {"feedback_keys": nothing})


def test_requests_without_settings_pass() -> None:
    for request in (None, [], "x", 3, {"input": {"context": {"mllm": "x"}}}, {"context": None}, {"context": "x"}):
        ClientRules(GemsContext()).check(request)


@pytest.mark.parametrize("place", ["context", "configurable"])
@pytest.mark.parametrize("slip", ["Seed", "max_round", "maxRounds"])
def test_a_misspelt_setting_of_a_client_is_refused_wherever_it_stands(place: str, slip: str) -> None:
    rules = ClientRules(GemsContext())
    with pytest.raises(InputError, match=f"unknown setting '{slip}': did you mean"):
        rules.check({place: {slip: 3}})
    rules.check({"configurable": {"thread_id": "t", "user_id": "u", "assistant_id": "a", "tenant": "x"}})
