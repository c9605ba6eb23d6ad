"""The diffusers backend beyond the conformance suite: options, memory, stops, and weights that it refuses."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from conformance.generator_suite import images, pixels
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import SIZE, edit_index, save_tiny, weights_of

from gems.authority import OPERATOR
from gems.errors import BackendError, ContentRefusedError, InputError
from gems.models import devices
from gems.models.diffusers import check as diffusers_check
from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.diffusers.part_sizes import parameters_of, quantized_parts, variant_of, weights_size
from gems.models.diffusers.source import PipelineSource
from gems.models.generators import (
    DEFAULTS,
    Edit,
    GeneratedImage,
    ImageRequest,
    Step,
    guide_of,
    objection_to,
    takes_negative_prompts,
)
from gems.models.open.weights import open_weights
from gems.models.pocket.weights import weights_folder
from gems.models.registry import init_image_generator
from gems.options import GeneratorOptions

SMALL = GeneratorOptions(width=SIZE, height=SIZE, steps=2)
REQUESTS = [ImageRequest("a car", seed) for seed in range(4)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("ZImagePipeline", tmp_path_factory.mktemp("pipelines") / "z-image-turbo")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A separate copy, so that the test does not share weights loaded by another test."""
    return Path(shutil.copytree(saved, tmp_path / "z-image-turbo"))


@pytest.fixture
def repository(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """A fake hub where owner/repo has the pipeline's index but no weights; the list of requested revisions."""
    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    shutil.copy(saved / "model_index.json", snapshot)
    revisions: list[str | None] = []

    def hf_hub_download(path: str, file: str, *, revision: str | None, local_files_only: bool) -> str:
        revisions.append(revision)
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return revisions


def generator(folder: Path | str, options: GeneratorOptions = SMALL, **changes: Any) -> DiffusersGenerator:
    return DiffusersGenerator(str(folder), name="tiny", options=options.model_copy(update=changes))


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_override_the_defaults(saved: Path) -> None:
    assert generator(saved, DEFAULTS).settings == {
        "width": 1024,
        "height": 1024,
        "num_inference_steps": 9,
        "guidance_scale": 0.0,
    }
    assert generator(saved, DEFAULTS, steps=4, guidance_scale=1.5).settings["num_inference_steps"] == 4


def test_settings_reach_the_pipeline(saved: Path) -> None:
    reports: list[Step] = []
    [result] = generator(saved, DEFAULTS, width=48, height=SIZE, steps=3).generate(REQUESTS[:1], on_step=reports.append)
    assert isinstance(result, GeneratedImage)
    assert result.image.size == (48, SIZE)
    assert [at.step for at in reports] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"true_cfg_scale": 4.0}, "ZImagePipeline takes no true_cfg_scale"),
        ({"base_url": "http://localhost"}, "no use for the option base_url"),
        ({"quantization": "fp7"}, "unknown quantization 'fp7'"),
        ({"quantization": "no/such.gguf"}, "there is no file no/such.gguf"),
        ({"device": "teapot"}, "unknown device 'teapot'"),
        ({"device": "cuda:99"}, "device cuda:99 is not available"),
        ({"offload": "model"}, "offload=model needs a GPU"),
        ({"offload": "sequential"}, "offload=sequential needs a GPU"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the behaviour without a GPU")
def test_options_that_cannot_be_honoured_are_refused(saved: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        generator(saved, **options).load()
    assert "\n" not in str(caught.value)


def test_what_must_not_be_there_joins_the_negative_prompt_of_its_own_image(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = REQUESTS[0], ImageRequest(REQUESTS[1].prompt, REQUESTS[1].seed, negative_prompt="dogs")
    backend = generator(saved, guidance_scale=3.0, negative_prompt="blur", batch_size=2)
    assert takes_negative_prompts(backend)
    assert not takes_negative_prompts(generator(saved))  # without guidance, the pipeline reads none
    assert not takes_negative_prompts(generator("nowhere/at-all"))
    told: list[Any] = []
    with backend.replicas.borrow() as replica:
        encode = replica.pipeline.encode_prompt

        def noting(*args: Any, **kwargs: Any) -> Any:
            told.append([*kwargs["negative_prompt"]])  # the pipeline puts its template around them, in place
            return encode(*args, **kwargs)

        monkeypatch.setattr(replica.pipeline, "encode_prompt", noting)
    alone = images(backend, [one])
    assert pixels(images(backend, [one, other])[0]) == pixels(alone[0])
    assert told == [["blur"], ["blur"], ["blur, dogs"]]


def test_a_pipeline_without_a_sibling_takes_no_strength() -> None:
    with pytest.raises(InputError, match="strength"):
        init_image_generator("pocket", GeneratorOptions(strength=0.5)).generate([ImageRequest("two red cars", 1)])


@pytest.mark.parametrize(("quantization", "package"), [("bnb-4bit", "bitsandbytes"), ("torchao-int8", "torchao")])
def test_a_missing_package_is_named(
    saved: Path, quantization: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find_spec(name, *a))
    with pytest.raises(
        InputError, match=rf"needs the package {package}: pip install .*{package}.*the extra 'quantization'"
    ):
        generator(saved, quantization=quantization).load()


def test_the_autoencoder_can_work_in_parts_and_the_denoiser_be_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import ZImageTransformer2DModel

    compiled: list[object] = []
    monkeypatch.setattr(ZImageTransformer2DModel, "compile_repeated_blocks", lambda self: compiled.append(self))
    backend = generator(folder, vae_tiling=True, vae_slicing=True, compile=True)
    assert len(images(backend, REQUESTS[:1])) == 1
    with backend.replicas.borrow() as replica:
        assert replica.pipeline.vae.use_tiling
        assert replica.pipeline.vae.use_slicing
        assert compiled == [replica.pipeline.transformer]


def test_offloading_is_set_up_on_the_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import ZImagePipeline

    from gems.models.diffusers import loading as diffusers_loading

    calls: list[tuple[str, str]] = []
    for method in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        monkeypatch.setattr(ZImagePipeline, method, lambda self, device, m=method: calls.append((m, device)))
    pipeline = ZImagePipeline.from_pretrained(folder)
    for offload in ("model", "sequential"):
        options = GeneratorOptions.model_validate({"offload": offload})
        assert diffusers_loading._placed(pipeline, options, "cuda:1") is pipeline
    assert calls == [("enable_model_cpu_offload", "cuda:1"), ("enable_sequential_cpu_offload", "cuda:1")]


def test_a_gguf_file_replaces_the_transformer(folder: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from safetensors.torch import load_file

    plain = images(generator(folder), REQUESTS[:1])
    writer = gguf.GGUFWriter(folder.parent / "transformer.gguf", "lumina2")
    for name, tensor in load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors").items():
        writer.add_tensor(name, tensor.numpy())
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    backend = generator(folder, quantization=str(folder.parent / "transformer.gguf"))
    assert [pixels(r) for r in images(backend, REQUESTS[:1])] == [pixels(r) for r in plain]
    assert backend.fingerprint.startswith(generator(folder).fingerprint + "+")


def test_int8_weights_make_nearly_the_same_image(folder: Path) -> None:
    pytest.importorskip("torchao")
    [plain] = images(generator(folder), REQUESTS[:1])
    [rough] = images(generator(folder, quantization="torchao-int8"), REQUESTS[:1])
    difference = max(abs(a - b) for a, b in zip(pixels(plain), pixels(rough), strict=True))
    assert 0 < difference < 32


# --- number types and devices ----------------------------------------------------------------------------------------


def test_the_number_type_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.pick_dtype(None, "cpu") is torch.float32
    assert devices.pick_dtype("float16", "cpu") is torch.float16
    for modern, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, m=modern: m)
        assert devices.pick_dtype(None, "cuda:0") is expected
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: False)
    assert devices.pick_dtype(None, "mps") is torch.float16


def test_every_gpu_is_used_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.pick_devices(None) == ("cuda:0", "cuda:1")
    assert devices.pick_devices("cuda:1, cpu") == ("cuda:1", "cpu")


def test_generators_with_other_call_options_share_loaded_weights(folder: Path) -> None:
    first_generator, second_generator = generator(folder), generator(folder, steps=4, previews=1)
    with first_generator.replicas.borrow() as replica:
        pipeline = replica.pipeline
    with second_generator.replicas.borrow() as replica:
        assert replica.pipeline is pipeline
    with generator(folder, vae_slicing=True).replicas.borrow() as replica:
        assert replica.pipeline is not pipeline


def test_a_batch_is_spread_over_the_devices(folder: Path) -> None:
    alone = [pixels(r) for r in images(generator(folder), REQUESTS)]
    both = generator(folder, device="cpu,cpu", batch_size=8)
    reports: list[Step] = []
    results = both.generate(REQUESTS, on_step=reports.append)
    assert [isinstance(r, GeneratedImage) for r in results] == [True] * 4
    assert {at.index for at in reports} == {0, 1, 2, 3}
    replicas = both.replicas
    with replicas.borrow() as first, replicas.borrow() as second:
        assert first.pipeline is not second.pipeline
    single = generator(folder, device="cpu,cpu")
    assert [pixels(r) for r in images(single, REQUESTS)] == alone


# --- memory ----------------------------------------------------------------------------------------------------------


def limit_memory(
    backend: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch, largest: int, error: Exception
) -> list[int]:
    """Make the transformer fail for batches above the limit; return the list of batch sizes tried."""
    batch_sizes: list[int] = []
    with backend.replicas.borrow() as replica:
        transformer = replica.pipeline.transformer
    forward: Callable[..., Any] = transformer.forward

    def limited(x: list[Any], *args: Any, **kwargs: Any) -> Any:
        batch_sizes.append(len(x))
        if len(x) > largest:
            raise error
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(transformer, "forward", limited)
    return batch_sizes


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("HIP out of memory. Tried ...")])
@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    backend = generator(folder, batch_size=4)
    batch_sizes = limit_memory(backend, monkeypatch, 1, error)
    results = images(backend, REQUESTS)
    assert batch_sizes == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [r.request for r in results] == REQUESTS
    assert [r.note for r in results] == [
        "tiny: a batch of 2 does not fit into memory; going on with 1",
        None,
        None,
        None,
    ]
    batch_sizes.clear()
    assert [r.note for r in images(backend, REQUESTS[:2])] == [None, None]  # it remembers the size that fits
    assert batch_sizes == [1, 1, 1, 1]
    assert [pixels(r) for r in results] == [pixels(r) for r in images(generator(folder), REQUESTS)]


def test_one_image_that_does_not_fit_is_an_error_with_advice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = generator(folder, batch_size=2)
    limit_memory(backend, monkeypatch, 0, torch.OutOfMemoryError("CUDA"))
    for error in backend.generate(REQUESTS[:2]):
        assert isinstance(error, BackendError)
        assert not error.retryable
        assert "offload=model" in str(error)


def test_other_failures_are_errors_in_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = generator(folder)
    limit_memory(backend, monkeypatch, 0, RuntimeError("cuBLAS\nfailed"))
    [error] = backend.generate(REQUESTS[:1])
    assert isinstance(error, BackendError)
    assert error.retryable
    assert str(error).startswith(
        "tiny: ZImagePipeline failed with RuntimeError: cuBLAS failed (pipeline_z_image.py, line "
    )


# --- steps, previews, edits ------------------------------------------------------------------------------------------


class StopError(Exception):
    """An exception that no backend knows."""


def test_a_callback_that_raises_ends_the_image_at_once(folder: Path) -> None:
    step_numbers: list[int] = []

    def on_step(at: Step) -> None:
        step_numbers.append(at.step)
        if at.step == 2:
            raise StopError

    backend = generator(folder, steps=50)
    with pytest.raises(StopError):
        backend.generate(REQUESTS, on_step=on_step)
    assert step_numbers == [1, 2]
    assert len(images(backend, REQUESTS[:1])) == 1


def test_previews_that_fail_leave_the_images_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    def encode(*_: Any) -> None:
        raise RuntimeError("no encoder")

    monkeypatch.setattr(AutoencoderKL, "encode", encode)
    reports: list[Step] = []
    [result] = generator(folder, previews=1).generate(REQUESTS[:1], on_step=reports.append)
    assert isinstance(result, GeneratedImage)
    assert [at.preview for at in reports] == [None, None]


def test_previews_have_the_colours_of_the_image() -> None:
    """With an averaging autoencoder the colours are restored, and packed latents are unpacked."""
    from gems.models.diffusers.previews import Previews

    class Config(dict[str, Any]):
        scaling_factor, shift_factor = 2.0, 0.5

    class Averages:
        """An 'autoencoder' of four latent channels: the three colours of 8 x 8 pixels, and a constant."""

        dtype, config = torch.float32, Config()

        def encode(self, image: torch.Tensor) -> Any:
            rgb = torch.nn.functional.avg_pool2d(image, 8)
            latents = torch.cat([rgb, torch.zeros_like(rgb[:, :1])], dim=1)
            self.latent_dist = self
            self.mode = lambda: latents
            return self

    class Pipeline:
        vae, vae_scale_factor, _execution_device = Averages(), 8, "cpu"

        def maybe_free_model_hooks(self) -> None: ...

        @staticmethod
        def _unpack_latents(latents: torch.Tensor, height: int, width: int, scale: int) -> torch.Tensor:
            from diffusers import FluxPipeline

            unpacked: torch.Tensor = FluxPipeline._unpack_latents(latents, height, width, scale)
            return unpacked

    from diffusers import FluxPipeline

    pipeline = Pipeline()
    previews = Previews(pipeline)
    latents = torch.zeros(2, 4, 4, 8)
    latents[0, 0] = 1.0  # red, before shift and scale
    latents[0, 1:3] = latents[1] = -1.0
    latents = (latents - 0.5) * 2
    red, black = previews.draw(pipeline, latents, 2.0)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 4, 8)
    for first, second in ((red, black), previews.draw(pipeline, packed, 2.0)):
        assert first is not None
        assert second is not None
        assert first.size == (8, 4)
        assert first.getpixel((5, 2)) == pytest.approx((255, 0, 0), abs=2)
        assert second.getpixel((5, 2)) == pytest.approx((0, 0, 0), abs=2)


def test_an_edit_moves_as_far_as_strength_says(folder: Path) -> None:
    start = Image.new("RGB", (SIZE, SIZE), "red")
    edits = [ImageRequest("a car", 1, Edit(start, keep=("Is it red?",), fix=()))]

    def steps(strength: float | None) -> int:
        reports: list[Step] = []
        generator(folder, steps=10, strength=strength).generate(edits, on_step=reports.append)
        return len(reports)

    assert (steps(0.2), steps(None), steps(1.0)) == (2, 6, 10)


def test_an_edit_of_few_steps_keeps_one(folder: Path) -> None:
    edit = Edit(Image.new("RGB", (64, 64), "red"), keep=(), fix=())
    [result] = images(generator(folder, steps=1), [ImageRequest("a car", 1, edit)])
    assert result.image.size == (SIZE, SIZE)


def test_edits_is_known_without_weights(folder: Path) -> None:
    for path in weights_of(folder):
        path.unlink()
    assert generator(folder).edits
    assert init_image_generator("pocket").edits
    edit_index(folder, _class_name="QwenImageEditPipeline")
    assert generator(folder, DEFAULTS).edits
    edit_index(folder, _class_name="FluxKontextPipeline")
    assert generator(folder, DEFAULTS).edits


def test_a_pipeline_that_only_refines_is_refused(folder: Path) -> None:
    edit_index(folder, _class_name="StableDiffusionXLImg2ImgPipeline")
    with pytest.raises(InputError, match="only refines images"):
        generator(folder, DEFAULTS).load()


# --- sources ---------------------------------------------------------------------------------------------------------


def test_the_revision_comes_after_an_at(tmp_path: Path) -> None:
    assert PipelineSource.parse("owner/repo@v1.0") == PipelineSource("owner/repo", "v1.0")
    assert PipelineSource.parse("owner/repo") == PipelineSource("owner/repo")
    (tmp_path / "my@model").mkdir()
    assert PipelineSource.parse(str(tmp_path / "my@model")).revision is None
    with pytest.raises(InputError, match="no revisions"):
        PipelineSource.parse(f"{tmp_path}@main")


def test_a_repository_is_pinned_to_the_commit_that_is_named(
    repository: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    def from_pretrained(path: str, **arguments: Any) -> Any:
        repository.append(arguments["revision"])
        raise OSError("no network")

    monkeypatch.setattr(diffusers.ZImagePipeline, "from_pretrained", from_pretrained)
    backend = generator("owner/repo@v1")
    assert backend.fingerprint == "owner/repo@c0ffee"
    with pytest.raises(BackendError, match="cannot load the image model owner/repo: no network"):
        backend.load()
    assert repository == ["v1", *["c0ffee"] * 4]  # three small configuration files, then the weights


@pytest.mark.usefixtures("repository")
def test_what_may_not_be_downloaded_is_asked_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    questions: list[bool] = []
    download = huggingface_hub.hf_hub_download

    def hf_hub_download(*arguments: Any, local_files_only: bool, **more: Any) -> str:
        questions.append(local_files_only)
        return download(*arguments, local_files_only=local_files_only, **more)

    def from_pretrained(path: str, **arguments: Any) -> Any:
        questions.append(arguments["local_files_only"])
        raise OSError("no copy here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *a, **k: questions.append(False))
    monkeypatch.setattr(diffusers.ZImagePipeline, "from_pretrained", from_pretrained)
    backend = DiffusersGenerator("owner/repo@v1", name="diffusers:owner/repo@v1", may_download=False)
    with pytest.raises(BackendError, match="cannot load the image model owner/repo: no copy here"):
        backend.load()
    assert "the size of its weights is unknown" in backend.check()
    assert set(questions) == {True}


def test_a_repository_that_cannot_be_reached_is_an_error_of_one_line() -> None:
    backend = init_image_generator("diffusers:nobody/nothing@v1", authority=OPERATOR)
    with pytest.raises(BackendError, match="cannot load the image model nobody/nothing") as caught:
        backend.generate(REQUESTS[:1])
    assert not caught.value.retryable
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(BackendError, match=r"there is no folder or file \./nowhere"):
        generator("./nowhere").load()


def test_missing_weights_are_reported(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BackendError, match="cannot load the image model") as caught:
        generator(folder).load()
    assert not caught.value.retryable
    with pytest.raises(BackendError, match="holds no weights for its transformer"):
        generator(folder).check()


def test_damaged_weights_are_reported(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackendError, match="cannot load the image model"):
        generator(folder).load()


def test_pickled_weights_are_refused(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(InputError, match="holds pickled weights only"):
        generator(folder).load()


def test_code_that_comes_with_the_weights_needs_trust(folder: Path) -> None:
    (folder / "own.py").write_text(
        "import diffusers\n\n\nclass Own(diffusers.ZImagePipeline):\n    made_here = True\n", encoding="utf-8"
    )
    edit_index(folder, _class_name=["own", "Own"])
    with pytest.raises(InputError, match="trust_remote_code"):
        generator(folder).load()
    trusting = generator(folder, trust_remote_code=True)
    assert len(images(trusting, REQUESTS[:1])) == 1
    with trusting.replicas.borrow() as replica:
        assert replica.pipeline.made_here


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kind", [None, "AutoModel"])
def test_kernels_that_weights_name_need_trust(kind: str | None, name: str, folder: Path) -> None:
    """With the package ``kernels``, transformers would download and import them."""
    if kind:
        edit_index(folder, text_encoder=["transformers", kind])
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: "org/kernel@main"}))
    with pytest.raises(InputError, match="names 'org/kernel@main', whose code would be downloaded and run"):
        generator(folder).load()


def test_a_pipeline_of_a_newer_diffusers_is_reported(folder: Path) -> None:
    edit_index(folder, _class_name="ZImage9Pipeline")
    with pytest.raises(BackendError, match=r"ZImage9Pipeline, which diffusers .* does not have; try 'pip install -U"):
        generator(folder).load()


# --- what is no image ------------------------------------------------------------------------------------------------


def _spoil(pipeline: Any, value: float, images: slice) -> None:
    """Let the decoder of a pipeline give this value for some images of a batch."""
    decode = pipeline.vae.decode

    def spoilt(*arguments: Any, **options: Any) -> Any:
        decoded = decode(*arguments, **options)
        sample = decoded[0]
        sample[images] = value
        return decoded

    pipeline.vae.decode = spoilt


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_image_of_a_batch_whose_pixels_are_not_numbers_is_a_failure(folder: Path, value: float) -> None:
    backend = generator(folder, batch_size=3)
    with backend.replicas.borrow() as replica:
        _spoil(replica.pipeline, value, slice(1, 2))
    first, second, third = backend.generate(REQUESTS[:3])
    assert isinstance(first, GeneratedImage)
    assert isinstance(third, GeneratedImage)
    assert isinstance(second, BackendError)
    assert "not numbers (NaN), so there is no image; try the option dtype=float32" in str(second)
    assert not second.retryable


def test_a_pipeline_that_converts_its_own_pixels_is_watched_too(folder: Path) -> None:
    backend = generator(folder)
    with backend.replicas.borrow() as replica:
        _spoil(replica.pipeline, math.nan, slice(None))
        pipeline = replica.pipeline
        pipeline.image_processor = SimpleNamespace(
            postprocess=lambda image, output_type: pipeline.numpy_to_pil(image.permute(0, 2, 3, 1).numpy())
        )
    [result] = backend.generate(REQUESTS[:1])
    assert isinstance(result, BackendError)


def test_a_black_image_of_a_sound_pipeline_is_an_image(folder: Path) -> None:
    backend = generator(folder)
    with backend.replicas.borrow() as replica:
        _spoil(replica.pipeline, -1.0, slice(None))
    [result] = backend.generate(REQUESTS[:1])
    assert isinstance(result, GeneratedImage)
    assert result.image.getbbox() is None


def test_an_image_that_a_safety_checker_blacked_out_is_a_refusal(folder: Path) -> None:
    backend = generator(folder, batch_size=2)
    with backend.replicas.borrow() as replica:
        kind = type(replica.pipeline)

        class Checked(kind):  # type: ignore[misc, valid-type]
            def __call__(self, *arguments: Any, **options: Any) -> Any:
                output = super().__call__(*arguments, **options)
                return SimpleNamespace(images=output.images, nsfw_content_detected=[False, True])

        replica.pipeline.__class__ = Checked
    first, second = backend.generate(REQUESTS[:2])
    assert isinstance(first, GeneratedImage)
    assert isinstance(second, ContentRefusedError)


def test_check_finds_weights_that_are_not_numbers(folder: Path) -> None:
    file = next((folder / "vae").glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = math.nan
    save_file(tensors, file)
    with pytest.raises(BackendError, match=rf"vae/{file.name} are not numbers \(NaN\), such as {name}"):
        generator(folder).check()


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_describes_the_pipeline(folder: Path) -> None:
    line = generator(folder, DEFAULTS, device="cpu").check()
    assert line.startswith("ZImagePipeline of diffusers ")
    assert "cpu with float32" in line
    assert "num_inference_steps 9, guidance_scale 0.0" in line
    assert line.endswith("edits images with ZImageImg2ImgPipeline")


def test_check_counts_the_numbers_in_the_files(folder: Path) -> None:
    sizes = weights_size(PipelineSource(str(folder)), DEFAULTS, 2)
    assert sizes is not None
    assert set(sizes) == {"transformer", "text_encoder", "vae"}
    with generator(folder).replicas.borrow() as replica:
        assert sizes["transformer"] == 2 * sum(p.numel() for p in replica.pipeline.transformer.parameters())
    quantized = weights_size(PipelineSource(str(folder)), GeneratorOptions(quantization="bnb-4bit"), 2)
    assert quantized is not None
    assert quantized["transformer"] == sizes["transformer"] // 4
    assert quantized["vae"] == sizes["vae"]


@pytest.mark.parametrize(
    ("kind", "sizes", "expected"),
    [
        # Billions of parameters, from the pipelines' own documentation.
        (
            "Kandinsky5T2IPipeline",
            {"transformer": 6.0, "text_encoder": 7.6, "text_encoder_2": 0.12, "vae": 0.1},
            {"transformer", "text_encoder"},
        ),
        (
            "HunyuanImagePipeline",
            {"transformer": 17.0, "text_encoder": 7.6, "text_encoder_2": 0.2, "vae": 0.4},
            {"transformer", "text_encoder"},
        ),
        (
            "Ideogram4Pipeline",
            {"transformer": 9.3, "unconditional_transformer": 9.3, "text_encoder": 8.0, "vae": 0.1},
            {"transformer", "unconditional_transformer", "text_encoder"},
        ),
        (
            "FluxPipeline",
            {"transformer": 12.0, "text_encoder": 0.12, "text_encoder_2": 4.7, "vae": 0.1},
            {"transformer", "text_encoder_2"},
        ),
        ("StableDiffusionXLPipeline", {"unet": 2.6, "text_encoder": 0.12, "vae": 3.0}, {"unet"}),
    ],
)
def test_the_large_parts_are_quantized(tmp_path: Path, kind: str, sizes: dict[str, float], expected: set[str]) -> None:
    """The files hold a header and a hole for the weights: a million parameters for each billion."""
    index = {"_class_name": kind}
    for name, billions in sizes.items():
        (tmp_path / name).mkdir()
        index[name] = ["diffusers", "Model"]  # type: ignore[assignment]
        size = int(billions * 1e6)
        header = json.dumps({"weight": {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}}).encode()
        file = tmp_path / name / "model.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(file, 8 + len(header) + size)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    source, options = PipelineSource.parse(str(tmp_path)), GeneratorOptions(quantization="bnb-4bit")
    parameters = parameters_of(source, options)
    assert set(quantized_parts(source, parameters)) == expected
    plain, estimated = weights_size(source, DEFAULTS, 2), weights_size(source, options, 2)
    assert plain is not None
    assert estimated is not None
    assert {name for name in plain if estimated[name] < plain[name]} == expected


def test_a_quantization_is_asked_for_the_large_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing is quantized: what diffusers is asked for is looked at."""
    asked: list[dict[str, Any]] = []

    def from_pretrained(path: str, **arguments: Any) -> Any:
        asked.append(arguments)
        raise OSError("far enough")

    from gems.models.diffusers import loading as diffusers_loading

    monkeypatch.setattr(diffusers.ZImagePipeline, "from_pretrained", from_pretrained)
    monkeypatch.setattr(diffusers_loading, "check_packages", lambda options: None)
    monkeypatch.setattr(diffusers_loading, "_config", lambda *_: diffusers.BitsAndBytesConfig(load_in_8bit=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = GeneratorOptions(quantization="bnb-8bit")
    with pytest.raises(BackendError, match="far enough"):
        diffusers_loading.load_pipeline(PipelineSource.parse(str(folder)), options, "cpu", torch.float32)
    expected = set(
        quantized_parts(PipelineSource.parse(str(folder)), parameters_of(PipelineSource.parse(str(folder)), options))
    )
    assert asked[0]["quantization_config"].quant_mapping.keys() == expected


# --- variants --------------------------------------------------------------------------------------------------------


def as_variant(folder: Path, variant: str, *parts: str) -> None:
    """Rename the weights of these parts to those of a variant."""
    for part in parts:
        for file in (folder / part).glob("*.safetensors"):
            file.rename(file.with_suffix(f".{variant}.safetensors"))


def test_weights_that_exist_in_one_variant_only_are_loaded(saved: Path, folder: Path) -> None:
    plain = [pixels(r) for r in images(generator(saved), REQUESTS[:1])]
    as_variant(folder, "fp16", "transformer", "text_encoder", "vae")
    assert variant_of(PipelineSource.parse(str(folder)), DEFAULTS) == "fp16"
    backend = generator(folder)
    assert "weights 0.00 GB" in backend.check()
    assert [pixels(r) for r in images(backend, REQUESTS[:1])] == plain


def test_a_variant_can_be_asked_for(folder: Path) -> None:
    shutil.copytree(folder / "transformer", folder / "copy")
    as_variant(folder, "fp16", "transformer")
    for file in (folder / "copy").glob("*.safetensors"):
        tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}
        save_file(tensors, folder / "transformer" / file.name)
    shutil.rmtree(folder / "copy")
    [plain] = images(generator(folder), REQUESTS[:1])
    [variant] = images(generator(folder, variant="fp16"), REQUESTS[:1])
    assert pixels(plain) != pixels(variant)


def test_a_variant_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no weights of the variant bf16 \(it has: none\)"):
        generator(folder, variant="bf16").load()


def test_several_variants_without_plain_weights_have_to_be_chosen_from(folder: Path) -> None:
    as_variant(folder, "fp16", "transformer")
    for file in list((folder / "transformer").glob("*.safetensors")):
        shutil.copy(file, file.with_name(file.name.replace("fp16", "bf16")))
    with pytest.raises(InputError, match="give --generator-option variant=bf16 or variant=fp16"):
        generator(folder).load()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["transformer/model.fp16.safetensors", "transformer/model.safetensors"], None),
        (["transformer/model-00001-of-00002.safetensors"], None),
        (["transformer/model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["transformer/model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["vae/model.fp16.safetensors", "transformer/model.safetensors"], None),
    ],
)
def test_a_variant_is_recognised_in_the_names_of_files(folder: Path, files: list[str], expected: str | None) -> None:
    assert variant_of(PipelineSource.parse(str(folder)), DEFAULTS, files) == expected


def test_check_warns_of_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers_check, "free_memory", lambda device: 1000)
    with pytest.raises(BackendError, match=r"for its weights alone .* offload=model"):
        generator(folder).check()


def test_check_refuses_what_a_run_would(folder: Path) -> None:
    with pytest.raises(InputError, match="takes no true_cfg_scale"):
        generator(folder, true_cfg_scale=2.0).check()


def test_check_names_a_package_that_a_component_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    class Dummy:
        _backends = ("sentencepiece",)

    Dummy.__module__ = "transformers.utils.dummy_sentencepiece_objects"
    monkeypatch.setattr(transformers, "Qwen3Model", Dummy, raising=False)
    with pytest.raises(BackendError, match="needs sentencepiece: pip install sentencepiece"):
        generator(folder).check()


@pytest.mark.usefixtures("repository")
def test_check_asks_the_hub_for_the_size_of_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.parameter_count = {"BF16": 3_000_000_000, "F32": 1}

    files = ["model_index.json", "z.safetensors", "transformer/m.safetensors", "transformer/m.fp16.safetensors"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *a, **k: files)
    monkeypatch.setattr(huggingface_hub.HfApi, "parse_safetensors_file_metadata", Metadata)
    sizes = weights_size(PipelineSource("owner/repo"), DEFAULTS, 2)
    assert sizes == {"transformer": 6_000_000_002}


@pytest.mark.usefixtures("repository")
def test_check_works_without_the_hub() -> None:
    assert "the hub does not answer" in generator("owner/repo").check()


# --- our own pipelines ---------------------------------------------------------------------------------------------


def test_pocket_takes_the_options_that_its_pipeline_takes() -> None:
    reports: list[Step] = []
    pocket = init_image_generator("pocket", GeneratorOptions(steps=3, batch_size=1, dtype="float32"))
    pocket.generate([ImageRequest("two red cars", 1), ImageRequest("a dog", 2)], on_step=reports.append)
    assert [(at.index, at.step, at.steps) for at in reports] == [(i, s, 3) for i in range(2) for s in (1, 2, 3)]
    with pytest.raises(InputError, match="PocketPipeline takes no width"):
        init_image_generator("pocket", GeneratorOptions(width=256)).generate([ImageRequest("a dog", 1)])


@pytest.mark.parametrize(("name", "weights"), [("pocket", weights_folder), ("open", open_weights)])
def test_a_copy_of_our_own_weights_draws_the_same(name: str, weights: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(weights("generator"), tmp_path / "copy")
    ours, copy = init_image_generator(name), init_image_generator(f"diffusers:{folder}", authority=OPERATOR)
    for request in (ImageRequest("two red cars", 1), ImageRequest("a green dog", 2)):
        [expected], [drawn] = (images(g, [request]) for g in (ours, copy))
        assert drawn == expected
    assert copy.fingerprint == ours.fingerprint
    assert guide_of(copy) == guide_of(ours) != ""
    assert objection_to(copy, "a zzyx") == objection_to(ours, "a zzyx") != ""


@pytest.mark.usefixtures("repository")
def test_our_own_pipelines_are_loaded_from_folders_only(tmp_path: Path) -> None:
    edit_index(tmp_path / "snapshots" / "c0ffee", _class_name="OpenPipeline")
    with pytest.raises(BackendError, match=r"OpenPipeline, .* does not have; download it and give the folder"):
        generator("owner/repo").load()
