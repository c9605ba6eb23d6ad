"""Command-line options and the settings that they produce."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from gems.cli.arguments import LIMIT_SETTINGS, SETTINGS, Setting, make_context, with_settings
from gems.cli.generate import _resume_command
from gems.errors import InputError
from gems.graph.context import GemsContext as Context
from gems.runs.threads import Thread

if TYPE_CHECKING:
    from gems.graph.context import GemsContext


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_an_option_that_is_left_out_has_the_contexts_own_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMS_MEMORY", raising=False)
    monkeypatch.delenv("GEMS_IMAGES", raising=False)
    assert make_context({name: SETTINGS[name].default}) == Context()


def test_options_set_the_fields_that_they_are_about() -> None:
    context = make_context(
        {
            "max_rounds": 2,
            "no_skills": True,
            "budget_images": 3,
            "price": ["image=0.04"],
            "chat_option": ["image-size=256"],
        }
    )
    assert (context.max_rounds, context.skills, context.builtin_skills) == (2, False, True)
    assert (context.budget.images, context.budget.tokens, context.budget.prices.image) == (3, None, 0.04)
    assert context.chat_options.image_size == 256


def test_one_generator_option_can_be_given_several_times() -> None:
    context = make_context({"generator_option": ["lora=a.safetensors:0.5", "steps=3", "steps=4", "lora=b.safetensors"]})
    assert context.generator_options.lora == ("a.safetensors:0.5", "b.safetensors")
    assert context.generator_options.steps == 4


def test_the_command_that_resumes_a_run_has_each_of_several_values() -> None:
    options = ["lora=a b.safetensors:0.5", "lora=b.safetensors", "trust_remote_code=true"]
    thread = Thread(
        "run-1", "a cat", make_context({"generator_option": options}), Path("gems-out"), datetime.now(UTC), {}
    )
    assert shlex.split(_resume_command(thread))[5::2] == options


def test_locations_come_from_the_environment_unless_memory_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMS_MEMORY", "/mine")
    with_memory, without_memory = (make_context({"memory": None, "no_memory": off}) for off in (False, True))
    assert with_memory.memory_url is not None
    assert with_memory.memory_url.get_secret_value() == "/mine"
    assert (without_memory.memory, without_memory.memory_url) == (False, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_images": 0}, "--budget-images 0: input should be greater than or equal to 1"),
        ({"seed": -1}, "--seed -1: input should be"),
        ({"price": ["picture=1"]}, "--price picture: unknown option; choose from: image, prompt, completion"),
        ({"price": ["image=-3"]}, "--price image=-3: input should be"),
        ({"price": ["verifier=1"]}, "--price verifier: unknown option; choose from: image, prompt, completion"),
        (
            {"price": ["verifier.completions=10"]},
            "--price verifier.completions: unknown option; choose from: prompt, completion",
        ),
        ({"price": ["verifier.=1"]}, "--price verifier.: unknown option; choose from: prompt, completion"),
        ({"price": ["verifier.prompt=-1"]}, "--price verifier.prompt=-1: input should be"),
        ({"price": ["verifier.prompt=x"]}, "--price verifier.prompt=x: input should be"),
        ({"price": ["nobody.prompt=1"]}, "--price nobody: input should be 'planner'"),
        ({"chat_option": ["verifier.timeouts=3"]}, "--chat-option verifier.timeouts: unknown option; choose from: "),
        ({"chat_option": ["verifier.timeout=-3"]}, "--chat-option verifier.timeout=-3: input should be"),
        ({"price": ["image"]}, "--price image: write NAME=VALUE, such as image=0.04"),
        ({"generator_option": ["steps=0"]}, "--generator-option steps=0: input should be"),
        ({"generator_option": ["stepps=2"]}, "--generator-option stepps: unknown option; choose from: width"),
        ({"chat_option": ["temperature=hot"]}, "--chat-option temperature=hot: input should be"),
        ({"memory": "here", "no_memory": True}, "--memory and --no-memory cannot be combined"),
    ],
)
def test_an_invalid_value_is_named_with_its_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_context(options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_command_gets_its_settings_as_one_context() -> None:
    app, contexts = typer.Typer(), list[Context]()
    own_seed = Setting(Annotated[int, typer.Option(help="Of everything.")], 5)

    @app.command()
    @with_settings(*LIMIT_SETTINGS, "no_plan", seed=own_seed)
    def draw(prompt: str, *, context: GemsContext, twice: bool = False) -> None:
        assert prompt == "cats"
        contexts.extend([context] * (1 + twice))

    result = CliRunner().invoke(app, ["cats", "--max-rounds", "2", "--no-plan", "--budget-images", "7", "--twice"])
    assert result.exit_code == 0, result.output
    assert contexts == [Context(max_rounds=2, plan=False, seed=5, budget={"images": 7})] * 2
    assert CliRunner().invoke(app, ["cats", "--mllm", "pocket"]).exit_code == 2, (
        "a command accepts only its own options"
    )
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "Of everything." in help_text
    assert "--context" not in help_text
