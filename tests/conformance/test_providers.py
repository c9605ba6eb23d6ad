"""Each provider's own LangChain package against its wire format, on a server of this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import pytest
from chatting import PROMPT, fill, look, picture
from forked import gems_here
from langchain_core.language_models import BaseChatModel
from PIL import Image
from servers.provider_server import Endpoint, ProviderServer, serving_providers

from gems.authority import OPERATOR
from gems.errors import BackendError, InputError, MalformedAnswerError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import GemsInput
from gems.memory.image_store import ImageStore
from gems.models.capabilities import capabilities_of
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.registry import init_mllm
from gems.nodes.decomposer import Requirements
from gems.nodes.prompt_checks import Plan
from gems.nodes.retry import RETRY
from gems.options import ChatOptions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is not default parameter:UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

KEY: Final = "sk-canary-77aa"


@dataclass(frozen=True)
class Provider:
    """A provider: its model's name, the protocol of the test server, and the package that speaks it."""

    name: str
    protocol: str
    package: str
    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    refuses: bool = True
    """Whether its protocol has a way to say that an answer was refused."""


PROVIDERS: Final = {
    "openai": Provider("openai:gpt-4o", "chat", "langchain_openai", "/v1"),
    "openai-responses": Provider("openai:gpt-5.5-pro", "responses", "langchain_openai", "/v1"),
    "azure": Provider("azure_openai:gpt-4o", "chat", "langchain_openai", "/openai"),
    "anthropic": Provider("anthropic:claude-sonnet-4-5", "anthropic", "langchain_anthropic"),
    "google": Provider("google_genai:gemini-3-pro-preview", "google", "langchain_google_genai"),
    "mistral": Provider("mistralai:mistral-large-latest", "mistral", "langchain_mistralai", "/v1"),
    "ollama": Provider("ollama:qwen3-vl:8b", "ollama", "langchain_ollama", refuses=False),
    "bedrock": Provider("bedrock_converse:anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock", "langchain_aws"),
    "openrouter": Provider("openrouter:qwen/qwen3-vl", "openrouter", "langchain_openrouter", "/api/v1"),
    # These three have no package of their own: they speak OpenAI's protocol.
    "vllm": Provider("openai:Qwen/Qwen3-VL-8B-Instruct", "vllm", "langchain_openai", "/v1"),
    "sglang": Provider("openai:default", "sglang", "langchain_openai", "/v1"),
    "llama.cpp": Provider("openai:gguf", "llama.cpp", "langchain_openai", "/v1"),
}


class Painter:
    """Draws two red cars whatever the prompt is."""

    name, fingerprint, edits = "two-red-cars", "0" * 64, False

    def generate(self, requests: Sequence[ImageRequest], **_: Any) -> list[GeneratedImage | BackendError]:
        return [GeneratedImage(request, Image.open(BytesIO(picture())).convert("RGB")) for request in requests]


@pytest.fixture(scope="module")
def server() -> Iterator[ProviderServer]:
    with serving_providers() as running:
        yield running


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")


def installed(name: str) -> Provider:
    """A provider; the test is skipped if its package is not installed."""
    pytest.importorskip(PROVIDERS[name].package, reason="install the extra providers", exc_type=ImportError)
    return PROVIDERS[name]


@pytest.fixture(params=PROVIDERS)
def any_provider(request: pytest.FixtureRequest) -> Provider:
    return installed(request.param)


@pytest.fixture(params=[name for name in PROVIDERS if name not in ("vllm", "sglang", "llama.cpp")])
def provider(request: pytest.FixtureRequest) -> Provider:
    """Those with a package, or a protocol, of their own; ``test_chat_servers`` has the faults of the others."""
    return installed(request.param)


class Talk:
    """A provider's model at an endpoint of the test server."""

    def __init__(self, server: ProviderServer, provider: Provider, behaviour: str = "fine", **options: Any) -> None:
        self.name, self.endpoint = provider.name, server.endpoint(behaviour, provider.protocol)
        key = {} if provider.protocol == "bedrock" else {"api_key": KEY}
        settings = {"timeout": 20.0, **key, **provider.options, **options}
        self.options = ChatOptions(base_url=self.endpoint.url + provider.path, **settings)

    @property
    def model(self) -> BaseChatModel:
        return init_mllm(self.name, self.options, OPERATOR)

    def fill(self, form: Any) -> Any:
        return fill(self.model, form, options=self.options)[0].form

    def draw(self, folder: Path, **settings: Any) -> dict[str, Any]:
        context = GemsContext(mllm=self.name, chat_options=self.options, memory=False, seed=7, **settings).as_operator()
        retry = RETRY._replace(initial_interval=0.01)
        graph = build_graph(generator=Painter(), images=ImageStore(folder), retry=retry)
        output: dict[str, Any] = graph.invoke(GemsInput(prompt=PROMPT), context=context)
        return output


def ways(endpoint: Endpoint) -> list[tuple[str, str]]:
    return [(entry["way"], entry["form"]) for entry in endpoint.log]


def test_a_run_is_solved(server: ProviderServer, any_provider: Provider, tmp_path: Path) -> None:
    talk = Talk(server, any_provider)
    output = talk.draw(tmp_path)
    assert (output["outcome"], output["errors"]) == ("solved", [])
    assert output["usage"].prompt_tokens > 0
    assert output["usage"].chat_calls == len(talk.endpoint.log)


@pytest.mark.parametrize("behaviour", ["busy", "down", "crashed"])
def test_a_transient_fault_is_tried_again(
    server: ProviderServer, provider: Provider, behaviour: str, tmp_path: Path
) -> None:
    talk = Talk(server, provider, behaviour)
    output = talk.draw(tmp_path)
    assert (output["outcome"], output["errors"]) == ("solved", [])
    assert len(talk.endpoint.log) >= 4, "one call failed"
    # OpenAI's own client does not say how often a busy server, which has done nothing, has refused.
    refused_free = provider.package == "langchain_openai" and behaviour != "crashed"
    assert output["usage"].chat_calls == len(talk.endpoint.log) - refused_free


def test_a_wrong_key_ends_the_run_in_one_line(server: ProviderServer, any_provider: Provider, tmp_path: Path) -> None:
    talk = Talk(server, any_provider, "locked")
    command = ["generate", PROMPT, "--mllm", talk.name, "--no-memory", "--out", tmp_path / "out"]
    options = [f"--chat-option=base_url={talk.options.base_url}"]
    options += [f"--chat-option=api_key={KEY}"] if talk.options.api_key else []
    result = gems_here(*command, *options, home=tmp_path / "home")
    assert result.returncode == 3, result.stderr
    assert "answers 401: " in result.stderr
    assert "no valid key" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert KEY not in result.stderr + result.stdout
    assert len(talk.endpoint.log) <= 2, "the planner and the decomposer ask once"


def test_the_whole_part_of_an_answer_that_is_cut_off_is_used(server: ProviderServer, provider: Provider) -> None:
    talk, fine = Talk(server, provider, "cut"), Talk(server, provider)
    whole, part = fine.fill(Requirements).requirements, talk.fill(Requirements).requirements
    assert part == whole[: len(part)]
    assert 0 < len(part) < len(whole)
    assert {way for way, _ in ways(talk.endpoint)} == {"json_schema"}
    talk.fill(Requirements)
    assert {way for way, _ in ways(talk.endpoint)} == {"json_schema"}, "a cut teaches nothing about the way"


def test_a_refusal_is_an_outcome_of_its_own(server: ProviderServer, provider: Provider) -> None:
    if not provider.refuses:
        pytest.skip("its protocol has no refusals")
    talk = Talk(server, provider, "refused")
    methods = capabilities_of(talk.model).methods
    with pytest.raises(MalformedAnswerError, match=r"refus|content filter stopped") as caught:
        talk.fill(Plan)
    assert not caught.value.retryable
    assert "\n" not in str(caught.value)
    assert capabilities_of(talk.model).methods == methods


@pytest.mark.parametrize(("behaviour", "says"), [("long", "larger context"), ("moderated", "moderation refuses")])
def test_a_question_that_is_too_long_or_moderated_teaches_nothing(
    server: ProviderServer, provider: Provider, behaviour: str, says: str
) -> None:
    talk = Talk(server, provider, behaviour)
    before = capabilities_of(talk.model).methods
    with pytest.raises(BackendError, match=says) as caught:
        talk.fill(Plan)
    assert not caught.value.retryable
    assert "\n" not in str(caught.value)
    assert capabilities_of(talk.model).methods == before
    assert len(talk.endpoint.log) == 1, "it is understood, so no other way is tried"


def test_a_schema_that_is_refused_is_asked_for_in_another_way(server: ProviderServer, provider: Provider) -> None:
    talk = Talk(server, provider, "no-schema")
    assert talk.fill(Requirements).requirements
    assert ways(talk.endpoint)[0][0] == "json_schema"
    assert ways(talk.endpoint)[-1][0] == "tool"


def test_log_probabilities_cost_no_way_of_asking(server: ProviderServer, provider: Provider) -> None:
    talk = Talk(server, provider)
    for _ in range(2):
        assert [verdict.answer for verdict in look(talk.model, talk.options)[0]] == ["yes"] * 3
    assert ways(talk.endpoint) == [("json_schema", "Verdicts")] * 2


@pytest.mark.parametrize("name", ["openai", "ollama", "anthropic"])
def test_a_call_that_outlives_its_timeout_is_ended(
    server: ProviderServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = installed(name)
    monkeypatch.setattr("gems.models.servers.provider_settings._WAITING_SECONDS", 0.0)
    talk = Talk(server, provider, "drips", timeout=0.4)
    with pytest.raises(BackendError, match="no whole answer in"):
        talk.fill(Plan)


def test_what_a_model_thought_goes_back_to_it(server: ProviderServer, tmp_path: Path) -> None:
    """As Kimi and DeepSeek want it; before, their second turn failed, and skills were off from then on."""
    talk = Talk(server, installed("vllm"), "needs-reasoning")
    for _ in range(2):
        output = talk.draw(tmp_path)
        assert (output["outcome"], output["errors"]) == ("solved", [])
    read = [e for e in talk.endpoint.log if any(m["role"] == "tool" for m in e["body"]["messages"])]
    assert len(read) == 2, "both runs have read a skill"


OPTIONS: Final = {
    "openai": {"reasoning_effort": "low", "extra_body": {"top_k": 3}},
    "openai-responses": {"reasoning_effort": "low", "extra_body": {"top_k": 3}},
    "anthropic": {"thinking_budget": 1024, "extra_body": {"top_k": 3}},
    "google": {"thinking_budget": 64},
    "mistral": {"reasoning_effort": "high", "extra_body": {"top_k": 3}},
    "ollama": {"num_ctx": 16384, "thinking_budget": 0},
    "bedrock": {"thinking_budget": 1024, "extra_body": {"top_k": 3}},
    "openrouter": {"reasoning_effort": "low"},
}
SENT: Final = {
    "reasoning_effort": ("low", "high"),
    "thinking_budget": ("1024", "64", "False"),
    "extra_body": ("'top_k': 3",),
    "num_ctx": ("16384",),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_reasoning_reach_the_server(server: ProviderServer, name: str) -> None:
    provider = installed(name)
    options: dict[str, Any] = OPTIONS[name]
    headers = {} if name in ("mistral",) else {"headers": {"X-Team": "a secret team"}}
    talk = Talk(server, provider, **options, **headers)
    talk.fill(Plan)
    [entry, *_] = talk.endpoint.log
    for option in options:
        assert any(text in str(entry["body"]) for text in SENT[option]), option
    if headers:
        assert {k.lower(): v for k, v in entry["headers"].items()}["x-team"] == "a secret team"


def test_a_provider_whose_package_is_missing_is_told_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_aws", None)
    with pytest.raises(InputError, match=r"pip install langchain-aws$"):
        init_mllm("bedrock:some.model", ChatOptions(timeout=7.5), OPERATOR)
