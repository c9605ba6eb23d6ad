"""Every option of every backend: it has a visible effect, or it is refused before anything is drawn or asked.

The tables below have an entry for each option and backend. An option without one fails, so that a new option cannot be
accepted in silence. "Visible" is whatever ``observe_...`` can see from outside: pixels, steps, number types, the
requests that a server gets.
"""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import pytest
import torch
from chatting import ChatEndpoint, look
from forked import gems_here
from langchain_core.messages import HumanMessage
from langgraph.runtime import RunControl
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_chat import save_tiny_chat
from tiny_pipelines import SIZE, save_tiny

from gems import build_graph
from gems.authority import OPERATOR
from gems.errors import GemsError, InputError
from gems.learning.learn import LearningPlan, learn
from gems.learning.trials import TrialSettings
from gems.models.chat_options import chat_option_effects, check_chat_options
from gems.models.generators import (
    Edit,
    GeneratedImage,
    ImageGenerator,
    ImageRequest,
    Step,
    check_generator_options,
    takes_negative_prompts,
)
from gems.models.option_effects import RefusedOptionsError
from gems.models.registry import init_image_generator, init_mllm
from gems.models.transformers.chat import init_transformers_chat
from gems.options import ChatOptions, GeneratorOptions
from gems.runs.record import ModelRecord

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("impatient"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="judges options on a machine without a GPU"),
]

REFUSED: Final = "refused"
HONOURED: Final = "honoured"

Table = dict[str, dict[str, tuple[Any, str]]]
"""By backend and option: a value to try, and what becomes of it."""


def refused(**values: Any) -> dict[str, tuple[Any, str]]:
    return {option: (value, REFUSED) for option, value in values.items()}


def honoured(**values: Any) -> dict[str, tuple[Any, str]]:
    return {option: (value, HONOURED) for option, value in values.items()}


LOCAL_ONLY: Final = {
    "device": "cpu,cpu",
    "dtype": "bfloat16",
    "offload": "model",
    "quantization": "bnb-4bit",
    "vae_tiling": True,
    "vae_slicing": True,
    "compile": True,
    "batch_size": 2,
    "trust_remote_code": True,
    "max_sequence_length": 4,
    "scheduler": "FlowMatchLCMScheduler",
    "variant": "fp16",
    "lora": "lora.safetensors",
    "vae": "vae-2",
    "config": "config",
}
PATHS: Final = ("workflow", "lora", "vae", "config")
"""Options whose values are files and folders of the fixture."""
SERVER_ONLY: Final = {"base_url": "http://127.0.0.1:9/v1", "api_key": "sk-x", "timeout": 0.2, "concurrency": 1}
COMFYUI_ONLY: Final = {
    "workflow": "other.json",
    "prompt_field": "7.text",
    "negative_field": "7.text",
    "seed_field": "3.noise",
}
DRAWING: Final = {"steps": 3, "guidance_scale": 2.0, "negative_prompt": "blur", "true_cfg_scale": 2.0}
SIDES: Final = {"width": 48, "height": 48}

DIFFUSERS: Final = {
    **honoured(**SIDES, steps=3, strength=0.5, previews=1),
    **honoured(**{k: LOCAL_ONLY[k] for k in ("device", "dtype", "vae_tiling", "vae_slicing", "compile", "batch_size")}),
    **honoured(
        **{k: LOCAL_ONLY[k] for k in ("trust_remote_code", "max_sequence_length", "scheduler", "variant", "vae")}
    ),
    "lora": ("lora.safetensors", HONOURED if find_spec("peft") else REFUSED),
    **refused(offload="model", quantization="bnb-4bit", edits=True, config="config", **SERVER_ONLY, **COMFYUI_ONLY),
}
GENERATORS: Final[Table] = {
    "pocket": {
        **honoured(steps=3, guidance_scale=2.0, device="cpu,cpu", compile=True),
        **refused(**SIDES, negative_prompt="blur", true_cfg_scale=2.0, strength=0.5, previews=1, edits=True),
        **refused(**{k: v for k, v in LOCAL_ONLY.items() if k not in ("device", "compile")}),
        **refused(**SERVER_ONLY, **COMFYUI_ONLY),
    },
    "z-image": DIFFUSERS | honoured(guidance_scale=4.0, negative_prompt="blur") | refused(true_cfg_scale=2.0),
    "qwen-image": DIFFUSERS | honoured(true_cfg_scale=2.0, negative_prompt="blur") | refused(guidance_scale=2.0),
    "openai": {
        **honoured(**SIDES, **DRAWING, **SERVER_ONLY, edits=True),
        **refused(**LOCAL_ONLY, **COMFYUI_ONLY, strength=0.5, previews=1),
    },
    "http": {
        **honoured(**SIDES, **{k: DRAWING[k] for k in ("steps", "guidance_scale", "negative_prompt")}),
        **honoured(**{k: v for k, v in SERVER_ONLY.items() if k != "base_url"}),
        **refused(**LOCAL_ONLY, **COMFYUI_ONLY, base_url="http://127.0.0.1:9", true_cfg_scale=2.0),
        **refused(strength=0.5, previews=1, edits=True),
    },
    "comfyui": {
        **honoured(**COMFYUI_ONLY, **{k: v for k, v in SERVER_ONLY.items() if k != "base_url"}),
        **refused(**SIDES, **DRAWING, **LOCAL_ONLY, base_url="http://127.0.0.1:9"),
        **refused(strength=0.5, previews=1, edits=True),
    },
}
OF_REASONING: Final = {"reasoning_effort": "low", "thinking_budget": 100}
CHAT: Final[Table] = {
    "pocket": {
        **honoured(image_size=64, logprobs=False),
        **refused(base_url="http://127.0.0.1:9/v1", api_key="sk-x", temperature=0.5, max_tokens=64, timeout=5.0),
        **refused(structured="json_schema", device="cpu", dtype="bfloat16", quantization="bnb-4bit"),
        **refused(**OF_REASONING, extra_body='{"top_k": 3}', headers='{"X-Team": "ours"}', num_ctx=4096),
    },
    "transformers": {
        **honoured(image_size=64, logprobs=False, temperature=1.5, max_tokens=16, timeout=0.001, dtype="bfloat16"),
        **honoured(structured="text", device="cpu"),
        **refused(base_url="http://127.0.0.1:9/v1", api_key="sk-x", quantization="bnb-4bit"),
        **refused(**OF_REASONING, extra_body='{"top_k": 3}', headers='{"X-Team": "ours"}', num_ctx=4096),
    },
    "openai": {
        **honoured(image_size=64, logprobs=False, temperature=0.5, max_tokens=64, structured="tool"),
        **honoured(base_url="http://127.0.0.1:9/v1", api_key="sk-x", timeout=0.1),
        **honoured(reasoning_effort="low", extra_body='{"top_k": 3}', headers='{"X-Team": "ours"}'),
        **refused(device="cpu", dtype="bfloat16", quantization="bnb-4bit", num_ctx=4096, thinking_budget=100),
    },
}


@pytest.mark.parametrize("backend", GENERATORS)
def test_the_table_has_every_generator_option(backend: str) -> None:
    assert GENERATORS[backend].keys() == GeneratorOptions.model_fields.keys()


@pytest.mark.parametrize("backend", CHAT)
def test_the_table_has_every_chat_option(backend: str) -> None:
    assert CHAT[backend].keys() == ChatOptions.model_fields.keys()


# --- generators ------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A backend to try options on: how to make its generator, and the options that it needs at least."""

    name: str
    base: dict[str, Any] = field(default_factory=dict)
    server: str = ""

    def options(self, **changes: Any) -> GeneratorOptions:
        return GeneratorOptions(**{**self.base, **changes})

    def generator(self, **changes: Any) -> ImageGenerator:
        return init_image_generator(self.name, self.options(**changes), OPERATOR)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    save_tiny("ZImagePipeline", folder / "z-image")
    save_tiny("QwenImagePipeline", folder / "qwen-image")
    workflow: dict[str, Any] = {
        "3": {"class_type": "KSampler", "inputs": {"seed": 0, "noise": 0}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "x"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "x"}},
    }
    (folder / "workflow.json").write_text(json.dumps(workflow))
    (folder / "comfyui").mkdir()
    other = {**workflow, "8": {"class_type": "SaveImage", "inputs": {}}}
    (folder / "comfyui" / "other.json").write_text(json.dumps(other))
    for kind, module in (("z-image", "layers.0.attention.to_q"), ("qwen-image", "transformer_blocks.0.attn.to_q")):
        add_weights(folder / kind, module)
    return folder


def add_weights(folder: Path, module: str) -> None:
    """Weights that change the images of a tiny pipeline: a variant, another autoencoder, a LoRA for a module."""
    [file] = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, file.with_suffix(".fp16.safetensors"))
    [decoder] = (folder / "vae").glob("*.safetensors")
    shutil.copytree(folder / "vae", folder / "vae-2")
    halves = {name: tensor * 0.5 for name, tensor in load_file(decoder).items()}
    save_file(halves, folder / "vae-2" / decoder.name, metadata={"format": "pt"})
    rows, columns = tensors[f"{module}.weight"].shape
    prefix = f"transformer.{module}"
    lora = {f"{prefix}.lora_A.weight": torch.ones(1, columns), f"{prefix}.lora_B.weight": torch.ones(rows, 1)}
    save_file(lora, folder / "lora.safetensors")


@pytest.fixture(params=GENERATORS)
def bench(request: pytest.FixtureRequest, folders: Path) -> Bench:
    kind = request.param
    small = {"width": SIZE, "height": SIZE, "steps": 2}
    if kind == "pocket":
        return Bench("pocket")
    if kind == "z-image":
        return Bench(f"diffusers:{folders / kind}", small | {"guidance_scale": 3.0})
    if kind == "qwen-image":
        return Bench(f"diffusers:{folders / kind}", small | {"true_cfg_scale": 3.0, "negative_prompt": "grey"})
    server, path = request.getfixturevalue("image_server"), f"slow~{uuid.uuid4().hex[:8]}"
    if kind == "openai":
        return Bench("openai:painter", {"base_url": f"{server}/{path}/v1", "timeout": 4.0}, server)
    if kind == "http":
        return Bench(f"http:{server}/{path}/draw", {"timeout": 4.0}, server)
    fields = {
        "workflow": str(folders / "workflow.json"),
        "prompt_field": "6.text",
        "seed_field": "3.seed",
        "timeout": 4.0,
    }
    return Bench(f"comfyui:{server}/{path}", fields, server)


def kind_of(bench: Bench) -> str:
    kind, _, where = bench.name.partition(":")
    return Path(where).name if kind == "diffusers" else kind


def observe(bench: Bench, **changes: Any) -> dict[str, Any]:
    """What can be seen of a generator with these options when it draws two images, and an edit."""
    generator = bench.generator(**changes)
    if bench.server:
        return observe_server(bench.server, generator)
    steps: list[Step] = []
    requests = [ImageRequest("two red cars", 1), ImageRequest("a black cat", 2)]
    results = generator.generate(requests, on_step=steps.append)
    seen: dict[str, Any] = {
        "images": [(r.image.size, r.image.tobytes()) for r in results if isinstance(r, GeneratedImage)],
        "steps": [(at.index, at.step, at.steps, at.preview is not None) for at in steps],
    }
    return seen | observe_local(generator, bench.options(**changes))


def observe_local(generator: Any, options: GeneratorOptions) -> dict[str, Any]:
    start = Image.new("RGB", (SIZE, SIZE), "red")
    with generator.replicas.borrow() as replica:
        pipeline = replica.pipeline
        vae = getattr(pipeline, "vae", None)
        seen = {
            "devices": generator.replicas.devices,
            "dtype": next(pipeline.transformer.parameters()).dtype,
            "vae": (getattr(vae, "use_tiling", False), getattr(vae, "use_slicing", False)),
            "compiled": getattr(pipeline.transformer, "was_compiled", False),
            "may run code": generator._source.trust_remote_code,
        }
    if not generator._source.is_own:
        steps: list[Step] = []
        edit = Edit(start, keep=("Is it red?",), fix=())
        generator.generate([ImageRequest("two red cars", 1, edit)], on_step=steps.append)
        seen["edit"] = len(steps)
    return seen


def observe_server(server: str, generator: Any) -> dict[str, Any]:
    address = str(generator.url)
    name = generator.url.path.split("/")[1]
    with urlopen(f"{server}/log") as answer:
        before = len([entry for entry in json.load(answer)["seen"] if entry["name"] == name])
    token = uuid.uuid4().hex  # the server remembers prompts: each observation has its own
    absent = "dogs" if takes_negative_prompts(generator) else ""
    results = generator.generate(
        [ImageRequest(f"two cars {token}", 1, negative_prompt=absent), ImageRequest(f"a cat {token}", 2)]
    )
    with urlopen(f"{server}/log") as answer:
        entries = [entry["request"] for entry in json.load(answer)["seen"] if entry["name"] == name][before:]
    return {
        "address": address,
        "requests": sorted(json.dumps(entry, sort_keys=True).replace(token, "") for entry in entries),
        "drawn": [isinstance(result, GeneratedImage) for result in results],
        "authorization": generator._session.http.headers.get("Authorization"),
        "in flight": generator.slots._value,
        "edits": generator.edits,
    }


@pytest.fixture(autouse=True)
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark what would be compiled: compiling takes minutes."""

    def mark(model: Any) -> None:
        model.was_compiled = True

    monkeypatch.setattr(torch.nn.Module, "compile", mark)
    from diffusers.models.modeling_utils import ModelMixin

    monkeypatch.setattr(ModelMixin, "compile_repeated_blocks", mark)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_generator_option_has_an_effect_or_is_refused(bench: Bench, folders: Path) -> None:
    """One test per backend and not one per option, so that the default is drawn only once."""
    default = observe(bench)
    for option, (value, expected) in GENERATORS[kind_of(bench)].items():
        setting = str(folders / kind_of(bench) / value) if option in PATHS else value
        setting = (setting,) if option == "lora" else setting
        if expected == HONOURED:
            check_generator_options(bench.generator(**{option: setting}))
            assert observe(bench, **{option: setting}) != default, option
        else:
            with pytest.raises(InputError) as caught:
                check_generator_options(bench.generator(**{option: setting}))
            assert option in str(caught.value)
            assert "sk-x" not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_all_refused_options_are_named_at_once() -> None:
    generator = init_image_generator("pocket", GeneratorOptions(dtype="bfloat16", batch_size=8, steps=4))
    with pytest.raises(RefusedOptionsError, match=r"dtype.*batch_size") as caught:
        check_generator_options(generator)
    statuses = {effect.option: effect.status for effect in caught.value.effects}
    assert statuses.items() >= {"dtype": "refused", "batch_size": "refused", "steps": "honoured"}.items()


# --- chat models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("chat") / "random")


@pytest.mark.parametrize("backend", CHAT)
def test_a_chat_option_is_honoured_or_refused(backend: str, chat_folder: Path) -> None:
    name = {"pocket": "pocket", "transformers": f"transformers:{chat_folder}", "openai": "openai:pocket"}[backend]
    for option, (value, expected) in CHAT[backend].items():
        key = {"api_key": "sk-x"} if backend == "openai" else {}  # its client needs one
        options = ChatOptions(**{**key, option: value})
        model = init_mllm(name, options, OPERATOR)
        effects = {effect.option: effect for effect in chat_option_effects(name, model, options)}
        assert effects[option].status == expected, effects[option]
        if expected == REFUSED:
            with pytest.raises(RefusedOptionsError, match=option) as caught:
                check_chat_options({name: model}, options)
            assert "sk-x" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"), [(o, v) for o, (v, status) in CHAT["openai"].items() if status == HONOURED]
)
def test_a_chat_server_sees_each_option(option: str, value: Any, chat_server: str) -> None:
    """The test server is slow to answer, so that a short timeout shows as well."""
    plain = ChatEndpoint(chat_server, "slow")
    other = ChatEndpoint(chat_server, "slow", **({} if option == "base_url" else {option: value}))
    answers = []
    for end in (plain, other):
        try:
            answers.append((look(end.model, end.options)[0], end.log))
        except GemsError as error:
            answers.append((str(error), end.log))
    if option == "base_url":  # each endpoint has its own address
        assert all(end.log for end in (plain, other))
    else:
        assert without_name(answers[0]) != without_name(answers[1])


def without_name(answer: tuple[Any, list[dict[str, Any]]]) -> tuple[Any, list[dict[str, Any]]]:
    content, log = answer
    return content, [{key: value for key, value in entry.items() if key != "name"} for entry in log]


@pytest.mark.parametrize("option", ["temperature", "max_tokens", "timeout", "dtype"])
def test_a_chat_model_in_this_process_honours_each_option(option: str, chat_folder: Path) -> None:
    def observe(**changes: Any) -> tuple[str, torch.dtype]:
        model = init_transformers_chat(str(chat_folder), "tiny", ChatOptions(**{"max_tokens": 24, **changes}))
        torch.manual_seed(0)
        try:
            answer = str(model.invoke([HumanMessage("What do you see?")]).content)
        except GemsError as error:
            answer = str(error)
        return answer, model.load().model.dtype

    assert observe(**{option: CHAT["transformers"][option][0]}) != observe()


def test_a_chat_option_counts_if_one_role_honours_it() -> None:
    options = ChatOptions(temperature=0.5, api_key="sk-x")
    models = {name: init_mllm(name, options, OPERATOR) for name in ("pocket", "openai:gpt-4o")}
    check_chat_options(models, options)


def test_a_temperature_that_the_client_drops_is_refused() -> None:
    """langchain-openai removes the temperature of gpt-5 in silence."""
    options = ChatOptions(temperature=0.2, api_key="sk-x")
    with pytest.raises(RefusedOptionsError, match=r"openai:gpt-5 does not take temperature=0\.2"):
        check_chat_options({"openai:gpt-5": init_mllm("openai:gpt-5", options, OPERATOR)}, options)


# --- before anything is spent ----------------------------------------------------------------------------------------

IGNORED: Final = {
    "pocket": {"batch_size": 8},
    "diffusers": {"guidance_scale": 0.0, "negative_prompt": "blur"},
    "openai": {"previews": 4, "api_key": "sk-x"},
    "http": {"true_cfg_scale": 4.0},
    "comfyui": {"seed_field": "3.seed"},
}
"""Options that a backend ignores, or lacks."""


def generator_name(kind: str, folders: Path) -> str:
    address = "http://127.0.0.1:9"
    names = {"diffusers": f"diffusers:{folders / 'z-image'}", "openai": "openai:painter"}
    return names.get(kind) or {"pocket": "pocket"}.get(kind, f"{kind}:{address}")


@pytest.mark.parametrize("kind", IGNORED)
def test_a_graph_asks_no_chat_model_if_an_option_is_refused(kind: str, folders: Path, chat_server: str) -> None:
    chat = ChatEndpoint(chat_server)
    context = chat.context(generator=generator_name(kind, folders), generator_options=IGNORED[kind])
    with pytest.raises(InputError):
        build_graph(settings=context).invoke({"prompt": "two red cars"})
    assert chat.log == []


def test_a_graph_asks_no_chat_model_if_a_chat_option_has_no_effect(chat_server: str) -> None:
    chat = ChatEndpoint(chat_server, dtype="bfloat16")
    with pytest.raises(InputError, match="dtype is for transformers: models"):
        build_graph(settings=chat.context()).invoke({"prompt": "two red cars"})
    assert chat.log == []


@pytest.mark.parametrize(
    "command",
    [["generate", "two red cars"], ["batch", "run", "PROMPTS", "--out", "OUT"], ["serve", "--port", "0"]],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("kind", ["pocket", "diffusers"])
def test_commands_begin_nothing_if_an_option_is_refused(
    command: list[str], kind: str, folders: Path, chat_server: str, tmp_path: Path
) -> None:
    chat = ChatEndpoint(chat_server)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("two red cars\n")
    words = [{"PROMPTS": str(prompts), "OUT": str(tmp_path / "out")}.get(word, word) for word in command]
    options = [f"{name}={value}" for name, value in IGNORED[kind].items()]
    words += ["--generator", generator_name(kind, folders), "--mllm", "openai:pocket", "--no-memory"]
    words += [part for option in options for part in ("--generator-option", option)]
    words += [f"--chat-option=base_url={chat.options.base_url}", "--chat-option=api_key=sk-x"]
    result = gems_here(*words, home=tmp_path / "home")
    assert result.returncode == 2, result.stderr
    assert list(IGNORED[kind])[-1] in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert chat.log == []


def test_learning_drafts_nothing_if_a_chat_option_has_no_effect(chat_server: str) -> None:
    chat = ChatEndpoint(chat_server, dtype="bfloat16")
    plan = LearningPlan([], [], [], [], ModelRecord("pocket", "f" * 64))
    bar = nullcontext()
    with pytest.raises(InputError, match="dtype is for transformers: models"):
        learn(plan, chat.context(), TrialSettings(), control=RunControl(), bar=bar, on_step=print)  # type: ignore[arg-type]
    assert chat.log == []
