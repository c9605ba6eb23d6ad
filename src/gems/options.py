"""How models are run: options of image generators and of chat models, every one with a default of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

__all__ = ["ChatOptions", "GeneratorOptions"]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GeneratorOptions(_Options):
    """Options of an image generator. Empty: the model's own default. One that a backend cannot honour is refused."""

    # What every backend may understand.
    width: int | None = Field(default=None, ge=16, le=8192, title="Width", description="Pixels.")
    height: int | None = Field(default=None, ge=16, le=8192, title="Height", description="Pixels.")
    steps: int | None = Field(default=None, ge=1, le=1000, title="Steps", description="Denoising steps.")
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

    # Pipelines in this process.
    true_cfg_scale: float | None = Field(
        default=None,
        ge=0,
        le=100,
        title="True CFG scale",
        description="Guidance of models that are distilled (Qwen-Image).",
    )
    device: str | None = Field(
        default=None,
        title="Device",
        description='"cuda", "cuda:1", "mps", "cpu"; several with commas between them. Empty: all GPUs, or the CPU.',
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, title="Number type", description="Of the weights. Empty: bfloat16 where the device is good at it."
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none", title="CPU offload", description='For small GPUs: "model" is fast, "sequential" is smallest.'
    )
    quantization: str | None = Field(
        default=None,
        title="Quantization",
        description='"bnb-8bit", "bnb-4bit", "torchao-int8", or the path of a .gguf file with the transformer.',
    )
    vae_tiling: bool = Field(
        default=False, title="VAE tiling", description="Decode in tiles: large images, little memory."
    )
    vae_slicing: bool = Field(default=False, title="VAE slicing", description="Decode a batch image by image.")
    compile: bool = Field(
        default=False, title="Compile", description="torch.compile the denoiser: slow start, faster steps."
    )
    batch_size: int | None = Field(
        default=None, ge=1, le=64, title="Batch size", description="Most images in one forward pass. Empty: one."
    )
    previews: int = Field(
        default=0, ge=0, le=1000, title="Previews", description="Stream a small preview every so many steps; 0: none."
    )
    trust_remote_code: bool = Field(
        default=False, title="Trust remote code", description="Run Python code that comes with the weights."
    )

    # Servers.
    base_url: str | None = Field(
        default=None, title="Base URL", description="Of the server. Empty: GEMS_IMAGE_BASE_URL, then OPENAI_BASE_URL."
    )
    api_key: SecretStr | None = Field(
        default=None,
        exclude=True,  # never in a record, a log or a checkpoint: a resumed run reads the environment
        title="API key",
        description="Of the server. Empty: GEMS_IMAGE_API_KEY, then OPENAI_API_KEY. Never written down.",
    )
    edits: bool | None = Field(
        default=None,
        title="Edits",
        description="Whether the server can edit images. Empty: OpenAI's gpt-image models can, others are not asked.",
    )
    timeout: float = Field(default=300.0, gt=0, title="Timeout", description="Seconds for one image, retries included.")
    concurrency: int = Field(default=8, ge=1, le=1024, title="Concurrency", description="Requests in flight at once.")
    workflow: str | None = Field(
        default=None, title="Workflow", description="ComfyUI: a workflow in API format, a JSON file."
    )
    prompt_field: str | None = Field(
        default=None, title="Prompt field", description='ComfyUI: where the prompt goes, as NODE.INPUT ("6.text").'
    )
    seed_field: str | None = Field(
        default=None, title="Seed field", description='ComfyUI: where the seed goes, as NODE.INPUT ("3.seed").'
    )


class ChatOptions(_Options):
    """Options of the chat models, the same for all roles."""

    base_url: str | None = Field(
        default=None,
        title="Base URL",
        description="Of an OpenAI-compatible server. Empty: the provider's own variable.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        exclude=True,
        title="API key",
        description="Empty: the provider's own environment variable. Never written down.",
    )
    structured: Literal["auto", "json_schema", "tool", "json_mode", "text"] = Field(
        default="auto",
        title="Structured output",
        description="How answers are asked for. auto: the best that the model has, found out at its first call.",
    )
    image_size: int = Field(
        default=1024,
        ge=64,
        le=8192,
        title="Image size",
        description="Pixels on the longer side of images that are shown.",
    )
    temperature: float | None = Field(default=None, ge=0, le=2, title="Temperature")
    max_tokens: int | None = Field(default=None, ge=16, title="Most tokens", description="Of one answer.")
    timeout: float = Field(default=120.0, gt=0, title="Timeout", description="Seconds for one call.")
    logprobs: bool = Field(
        default=True,
        title="Log-probabilities",
        description="Use them where the provider has them: confidence is then measured, not claimed.",
    )
    device: str | None = Field(default=None, title="Device", description='Of "transformers:" models. Empty: the best.')
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, title="Number type", description='Of "transformers:" models.'
    )
    quantization: Literal["bnb-8bit", "bnb-4bit"] | None = Field(
        default=None, title="Quantization", description='Of "transformers:" models.'
    )
