"""Options of image generators and chat models. Each one has a default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
    field_validator,
)

from gems.authority import OperatorOnly, is_file

__all__ = ["ChatOptions", "GeneratorOptions", "RoleOptions"]


def _as_json(value: object) -> object:
    """The text of a JSON object, so that options can be compared and hashed; a mapping is written as one."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not isinstance(value, (str, Mapping)):
        return value
    try:
        content = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        content = None
    if not isinstance(content, Mapping):
        raise ValueError('give a JSON object, such as {"name": "value"}')
    return json.dumps(dict(content), sort_keys=True)


class _Options(BaseModel):
    """What only the operator gives is in no record, log or checkpoint: it is excluded from what is written down."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GeneratorOptions(_Options):
    """Options of an image generator. By default the model decides. A backend refuses options that it cannot honour."""

    # For every backend.
    width: int | None = Field(default=None, ge=16, le=8192, title="Width", description="Width in pixels.")
    height: int | None = Field(default=None, ge=16, le=8192, title="Height", description="Height in pixels.")
    steps: int | None = Field(default=None, ge=1, le=1000, title="Steps", description="Number of denoising steps.")
    guidance_scale: float | None = Field(
        default=None, ge=0, le=100, title="Guidance scale", description="Classifier-free or distilled guidance."
    )
    negative_prompt: str | None = Field(
        default=None, max_length=4000, title="Negative prompt", description="What the image should not show."
    )
    strength: float | None = Field(
        default=None,
        gt=0,
        le=1,
        title="Edit strength",
        description="How far an edit may move from its image (img2img).",
    )

    # For pipelines in this process.
    max_sequence_length: int | None = Field(
        default=None,
        ge=1,
        le=8192,
        title="Prompt length",
        description="Tokens that are read of a prompt, as far as the model can. Default: the pipeline's own.",
    )
    scheduler: str | None = Field(
        default=None,
        pattern="^[A-Za-z0-9]+$",
        max_length=100,
        title="Scheduler",
        description="A scheduler of diffusers instead of the model's own, such as DPMSolverMultistepScheduler.",
    )
    variant: str | None = Field(
        default=None,
        pattern="^[A-Za-z0-9_-]+$",
        max_length=40,
        title="Variant",
        description="Variant of the weights, such as fp16. Default: the plain ones, or else the only variant there is.",
    )
    lora: Annotated[tuple[str, ...], OperatorOnly("--generator-option lora=FILE[:SCALE]")] = Field(
        default=(),
        exclude=True,
        max_length=16,
        title="LoRA",
        description="Files of LoRA weights that are added, each with a scale after a colon. Default of the scale: 1.",
    )
    vae: Annotated[str | None, OperatorOnly("--generator-option vae=FOLDER_OR_FILE")] = Field(
        default=None,
        exclude=True,
        title="VAE",
        description="Folder, repository or file of another autoencoder of the same class.",
    )
    config: Annotated[str | None, OperatorOnly("--generator-option config=FOLDER_OR_REPO")] = Field(
        default=None,
        exclude=True,
        title="Configuration",
        description="For weights in a single file: a folder or repository of the pipeline that they are for. Default: "
        "the repository that diffusers knows for them.",
    )
    true_cfg_scale: float | None = Field(
        default=None,
        ge=0,
        le=100,
        title="True CFG scale",
        description="Classifier-free guidance of distilled models (Qwen-Image).",
    )
    device: str | None = Field(
        default=None,
        title="Device",
        description='"cuda", "cuda:1", "mps" or "cpu"; separate several with commas. Default: all GPUs, or the CPU.',
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None,
        title="Number type",
        description="Number type of the weights. Default: bfloat16 if the device supports it well.",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none",
        title="CPU offload",
        description='For GPUs with little memory: "model" is fast, "sequential" needs the least memory.',
    )
    quantization: Annotated[str | None, OperatorOnly("--generator-option quantization=FILE.gguf", applies=is_file)] = (
        Field(
            default=None,
            title="Quantization",
            description='"bnb-8bit", "bnb-4bit", "torchao-int8", or the path of a .gguf file with the transformer.',
        )
    )
    vae_tiling: bool = Field(
        default=False, title="VAE tiling", description="Decode in tiles: large images with little memory."
    )
    vae_slicing: bool = Field(
        default=False, title="VAE slicing", description="Decode the images of a batch one by one."
    )
    compile: bool = Field(
        default=False, title="Compile", description="Compile the denoiser with torch.compile: slow start, faster steps."
    )
    batch_size: int | None = Field(
        default=None, ge=1, le=64, title="Batch size", description="Maximum images in one forward pass. Default: one."
    )
    previews: int = Field(
        default=0,
        ge=0,
        le=1000,
        title="Previews",
        description="Number of steps between two small previews of an image; 0 for no previews.",
    )
    trust_remote_code: Annotated[bool, OperatorOnly("--generator-option trust_remote_code=true")] = Field(
        default=False,
        exclude=True,
        title="Trust remote code",
        description="Run Python code that comes with the weights.",
    )

    # For servers.
    base_url: Annotated[str | None, OperatorOnly("--generator-option base_url=ADDRESS")] = Field(
        default=None,
        exclude=True,
        title="Base URL",
        description="The server's address. Default: GEMS_IMAGE_BASE_URL, or else OPENAI_BASE_URL.",
    )
    api_key: Annotated[SecretStr | None, OperatorOnly("--generator-option api_key=KEY")] = Field(
        default=None,
        exclude=True,
        title="API key",
        description="The server's key. Default: GEMS_IMAGE_API_KEY, or else OPENAI_API_KEY. Never written down.",
    )
    edits: bool | None = Field(
        default=None,
        title="Edits",
        description="Whether the server can edit images. Default: only OpenAI's gpt-image models can.",
    )
    timeout: float = Field(
        default=300.0, gt=0, title="Timeout", description="Seconds for one image, including retries."
    )
    concurrency: int = Field(
        default=8, ge=1, le=1024, title="Concurrency", description="Maximum requests at the same time."
    )
    workflow: Annotated[str | None, OperatorOnly("--generator-option workflow=FILE.json")] = Field(
        default=None, exclude=True, title="Workflow", description="ComfyUI: the JSON file of a workflow in API format."
    )
    prompt_field: str | None = Field(
        default=None, title="Prompt field", description='ComfyUI: the input for the prompt, as NODE.INPUT ("6.text").'
    )
    negative_field: str | None = Field(
        default=None,
        exclude_if=lambda field: field is None,
        title="Negative field",
        description='ComfyUI: the input for the negative prompt, as NODE.INPUT ("7.text"); its text stays in front.',
    )
    seed_field: str | None = Field(
        default=None, title="Seed field", description='ComfyUI: the input for the seed, as NODE.INPUT ("3.seed").'
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _several(cls, lora: object) -> object:
        """One LoRA may be given without a list around it."""
        return (lora,) if isinstance(lora, str) else lora

    @field_serializer("quantization")
    def _without_folder(self, quantization: str | None) -> str | None:
        """A record names a file, not its folder."""
        return PurePath(quantization).name if quantization else quantization


class ChatOptions(_Options):
    """Options of the chat models. ``RoleOptions`` has those of single roles."""

    base_url: Annotated[str | None, OperatorOnly("--chat-option base_url=ADDRESS", kind="chat_options.base_url")] = (
        Field(
            default=None,
            exclude=True,
            title="Base URL",
            description="Address of a server with OpenAI's protocol. Default: the provider's environment variable.",
        )
    )
    api_key: Annotated[SecretStr | None, OperatorOnly("--chat-option api_key=KEY", kind="chat_options.api_key")] = (
        Field(
            default=None,
            exclude=True,
            title="API key",
            description="The provider's key. Default: the provider's environment variable. Never written down.",
        )
    )
    structured: Literal["auto", "json_schema", "tool", "json_mode", "text"] = Field(
        default="auto",
        title="Structured output",
        description="How structured answers are requested. auto: the best method that the model supports.",
    )
    image_size: int = Field(
        default=1024,
        ge=64,
        le=8192,
        title="Image size",
        description="Longer side, in pixels, of the images that a chat model sees.",
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, title="Temperature", description="Sampling temperature. Default: the model's own."
    )
    max_tokens: int | None = Field(
        default=None, ge=16, title="Maximum tokens", description="Length limit of an answer. Default: the model's own."
    )
    timeout: float = Field(
        default=120.0,
        gt=0,
        title="Timeout",
        description="Seconds for one try. A call ends after its client's tries, and a minute of waits between them.",
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None,
        title="Reasoning effort",
        description="How much a reasoning model thinks before it answers. Default: the model's own.",
    )
    thinking_budget: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        title="Thinking budget",
        description="Tokens that a model may think for; 0: not at all. Default: the model's own.",
    )
    num_ctx: int | None = Field(
        default=None, ge=512, title="Context length", description="Ollama: the tokens of a model's context."
    )
    extra_body: Annotated[
        str | None,
        BeforeValidator(_as_json),
        OperatorOnly("--chat-option extra_body=JSON", kind="chat_options.extra_body"),
    ] = Field(
        default=None,
        exclude=True,
        title="Extra body",
        description="A JSON object with more parameters of each request, as the provider names them.",
    )
    headers: Annotated[
        SecretStr | None,
        BeforeValidator(_as_json),
        OperatorOnly("--chat-option headers=JSON", kind="chat_options.headers"),
    ] = Field(
        default=None,
        exclude=True,
        title="Headers",
        description="A JSON object with more headers of each request. Never written down.",
    )
    logprobs: bool = Field(
        default=True,
        title="Log-probabilities",
        description="Use them if the provider has them: confidence is then measured rather than stated by the model.",
    )
    device: str | None = Field(
        default=None, title="Device", description='Device of "transformers:" models. Default: the best one.'
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, title="Number type", description='Number type of the weights of "transformers:" models.'
    )
    quantization: Literal["bnb-8bit", "bnb-4bit"] | None = Field(
        default=None, title="Quantization", description='Quantization of "transformers:" models.'
    )


class RoleOptions(_Options):
    """Chat options of single roles. What is not given for a role is as in ``ChatOptions`` for all of them."""

    planner: ChatOptions | None = Field(default=None, title="Planner", description="Chat options of the planner.")
    decomposer: ChatOptions | None = Field(
        default=None, title="Decomposer", description="Chat options of the decomposer."
    )
    verifier: ChatOptions | None = Field(default=None, title="Verifier", description="Chat options of the verifier.")
    refiner: ChatOptions | None = Field(default=None, title="Refiner", description="Chat options of the refiner.")

    @field_serializer("planner", "decomposer", "verifier", "refiner")
    def _only_what_was_given(self, options: ChatOptions | None, info: SerializationInfo) -> dict[str, Any] | None:
        """A record keeps only what was given for a role, so that the rest stays as for all roles when it is read."""
        if options is None:
            return None
        dumped = options.model_dump(mode=info.mode, exclude_unset=True)
        return dumped or None

    def of(self, role: str, common: ChatOptions) -> ChatOptions:
        """The options of a role, from its own and those that all roles have in common."""
        own: ChatOptions | None = getattr(self, role)
        if own is None:
            return common
        return common.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
