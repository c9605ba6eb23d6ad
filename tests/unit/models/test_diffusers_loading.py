"""Loading diffusers pipelines from single files, and what is added to or exchanged in a loaded one."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from conformance.generator_suite import images, pixels
from safetensors.torch import load_file, save_file
from tiny_pipelines import SIZE, edit_index, save_as_checkpoint, save_tiny, weights_of

from gems.errors import BackendError, InputError
from gems.models.diffusers.additions import compatible_schedulers, loras_of
from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.diffusers.prompt_length import MOST_TOKENS
from gems.models.diffusers.weight_files import known_repository
from gems.models.generators import ImageRequest, Step, excess_of
from gems.options import GeneratorOptions

SMALL = GeneratorOptions(width=SIZE, height=SIZE, steps=2)
REQUEST = [ImageRequest("a car", 1)]
NEEDS_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="LoRA weights need peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("StableDiffusionPipeline", tmp_path_factory.mktemp("loading") / "sd")


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("ZImagePipeline", tmp_path_factory.mktemp("loading") / "z-image-turbo")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return save_as_checkpoint(folder, folder.parent / "all parts.safetensors")


@pytest.fixture
def bare(folder: Path, tmp_path: Path) -> Path:
    """The configuration of a pipeline without its weights."""
    copy = Path(shutil.copytree(folder, tmp_path / "bare"))
    for file in weights_of(copy):
        file.unlink()
    return copy


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)


def generator(path: Path | str, **options: Any) -> DiffusersGenerator:
    return DiffusersGenerator(str(path), name="tiny", options=SMALL.model_copy(update=options))


def drawn(path: Path | str, **options: Any) -> list[int]:
    [result] = images(generator(path, **options), REQUEST)
    return list(pixels(result))


# --- single files ----------------------------------------------------------------------------------------------------


def test_a_file_with_all_parts_draws_as_its_folder_does(folder: Path, checkpoint: Path, bare: Path) -> None:
    backend = generator(checkpoint, config=str(bare))
    assert "StableDiffusionPipeline" in backend.check()
    assert drawn(checkpoint, config=str(bare)) == drawn(folder)
    assert len(backend.fingerprint) == 64
    assert backend.fingerprint != generator(folder).fingerprint


def test_a_file_with_the_denoiser_takes_the_other_parts_from_its_pipeline(z_image: Path, tmp_path: Path) -> None:
    [file] = (z_image / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, same)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, other)
    assert drawn(same, config=str(z_image)) == drawn(z_image)
    assert drawn(other, config=str(z_image)) != drawn(z_image)
    backend = generator(other, config=str(z_image))
    assert backend.fingerprint.endswith(f"+{generator(z_image).fingerprint}")
    assert "num_inference_steps 2" in backend.check()


def test_a_file_is_judged_by_its_name_and_a_given_configuration(z_image: Path, tmp_path: Path) -> None:
    [file] = (z_image / "transformer").glob("*.safetensors")
    shutil.copy(file, tmp_path / "mine.safetensors")
    settings = DiffusersGenerator(
        str(tmp_path / "mine.safetensors"), name="tiny", options=GeneratorOptions(config=str(z_image))
    ).settings
    assert (settings["num_inference_steps"], settings["guidance_scale"]) == (9, 0.0)


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_a_file_says_which_configuration_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "civitai.safetensors"
    save_file(
        {
            "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(1280),
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
        },
        file,
    )
    assert known_repository(file) == "stabilityai/stable-diffusion-xl-base-1.0"
    with pytest.raises(
        BackendError, match=r"civitai.safetensors.*stable-diffusion-xl-base-1.0.*--generator-option config=FOLDER"
    ):
        generator(file).load()


def test_a_file_that_nobody_knows_asks_for_a_configuration(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "riddle.safetensors")
    with pytest.raises(InputError, match=r"does not say which pipeline it is for.*config=FOLDER_OR_REPO"):
        generator(tmp_path / "riddle.safetensors").load()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.gguf", "holds a transformer alone.*quantization="),
        ("model.ckpt", "is no .safetensors file"),
        ("model.safetensors", "no safetensors file, or it is damaged"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"nonsense" * 9)
    with pytest.raises((InputError, BackendError), match=words) as caught:
        generator(tmp_path / name).load()
    assert "\n" not in str(caught.value)


def header(shape: Any, end: int = 64, **fields: Any) -> bytes:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    return json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, end], **fields}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *map(header, ("abc", ["a"], [1.5], [True], None, 4, {}, [-4, 4], [10**30], [10**30, 10**30], [[4], [4]])),
        *map(header, ([3, 3], [2**40, 2**40])),
        header([4, 4], dtype="X"),
        header([4, 4], dtype=None),
        header([8, 8], end=256),
        *(b'{"a":' + b"[" * 200_000, b"[" * 200_000, b"[1]", b"\xff\xfe{}", b""),
        b'{"a": {"shape": [' + b"9" * 5000 + b"]}}",
        b"{}",
    ],
    ids=lambda content: content[:110].decode("latin-1")[45:],
)
def test_an_odd_header_of_weights_is_told_in_one_line(folder: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "odd.safetensors"
    file.write_bytes(len(content).to_bytes(8, "little") + content + bytes(64))
    unet = Path(shutil.copytree(folder, tmp_path / "sd")) / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, unet)
    alone, configured, within = generator(file), generator(file, config=str(folder)), generator(unet.parents[1])
    for asked in (alone.check, alone.load, configured.check, configured.load, within.check):
        with pytest.raises(
            BackendError, match="safetensors is no safetensors file, or it is damaged: download"
        ) as caught:
            asked()
        assert "\n" not in str(caught.value)


def test_a_download_that_was_cut_off_is_told_with_its_file(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "sd"))
    for whole, backend in (
        (
            shutil.copy(checkpoint, tmp_path / "cut.safetensors"),
            generator(tmp_path / "cut.safetensors", config=str(copy)),
        ),
        (copy / "vae" / "diffusion_pytorch_model.safetensors", generator(copy)),
    ):
        Path(whole).write_bytes(Path(whole).read_bytes()[:-100])
        with pytest.raises(BackendError, match=f"{whole} is no safetensors file, or it is damaged: download it again"):
            backend.check()


@pytest.mark.parametrize("shape", [[2**63, 0], [0, 2**64 - 1]])
def test_shapes_that_no_model_has_say_nothing_of_the_pipeline(tmp_path: Path, shape: list[int]) -> None:
    content = header(shape, end=0)
    (tmp_path / "odd.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(InputError, match="does not say which pipeline it is for"):
        generator(tmp_path / "odd.safetensors").check()


@pytest.mark.parametrize(
    "index",
    [
        *(b"[]", b"null", b'"text"', b"7", b"{}", b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"{}" + b" " * 2**24),
        *(b'{"_class_name": %b}' % name for name in (b"null", b"7", b"[]", b'["a"]', b'["a", 1]', b'{"a": 1}')),
    ],
    ids=lambda index: index[:24].decode("latin-1"),
)
@pytest.mark.parametrize("name", ["model_index.json", "modular_model_index.json"])
def test_an_odd_index_is_told_in_one_line(tmp_path: Path, name: str, index: bytes) -> None:
    (tmp_path / name).write_bytes(index)
    with pytest.raises(BackendError, match=f"{name} is damaged") as caught:
        generator(tmp_path).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [[], ["diffusers"], [None, None], [1, 2], ["diffusers", 3], [[], {}], 5, {"a": 1}])
def test_odd_parts_of_an_index_are_none(folder: Path, tmp_path: Path, part: Any) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "sd"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"unet": part, "scheduler": part}))
    with pytest.raises((BackendError, InputError)) as caught:
        generator(copy).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [["{}.code", "DDIMScheduler"], ["{}.code", "no such class"], ["{}.code", ""], ["code", "DDIMScheduler"], "zz"],
    ids=["class", "no class", "empty", "beside", "letters"],
)
@pytest.mark.parametrize("is_file", [True, False], ids=["file", "folder"])
def test_a_part_of_another_module_needs_trust(
    folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_file: bool, part: Any
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / f"weights_{is_file}"))
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nfrom diffusers import DDIMScheduler\n"
    for file in (copy / "code.py", copy / "scheduler" / "code.py", tmp_path / "z.py"):
        file.write_text(code, encoding="utf-8")
    edit_index(copy, scheduler=[part[0].format(copy.name), part[1]] if isinstance(part, list) else part)
    monkeypatch.syspath_prepend(tmp_path)
    backend = generator(checkpoint, config=str(copy)) if is_file else generator(copy)
    for asked in (backend.check, backend.load, lambda: backend.generate(REQUEST)):
        with pytest.raises(InputError, match=r"its scheduler is of the module .* set trust_remote_code"):
            asked()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "folder"])
def test_a_part_of_another_module_that_is_trusted_is_loaded(
    folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_file: bool
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / f"trusted_{is_file}"))
    name = "trusted.code" if is_file else "code"
    for file in (tmp_path / "trusted" / "code.py", copy / "scheduler" / "code.py"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("import diffusers\n\n\nclass Own(diffusers.DDIMScheduler):\n    pass\n", encoding="utf-8")
    edit_index(copy, scheduler=[name, "Own"])
    monkeypatch.syspath_prepend(tmp_path)
    backend = (
        generator(checkpoint, config=str(copy), trust_remote_code=True)
        if is_file
        else generator(copy, trust_remote_code=True)
    )
    with backend.replicas.borrow() as replica:
        assert type(replica.pipeline.scheduler).__name__ == "Own"


def test_the_safety_checker_is_of_diffusers(folder: Path, checkpoint: Path, bare: Path) -> None:
    edit_index(bare, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert drawn(checkpoint, config=str(bare)) == drawn(folder)


def test_kernels_that_a_part_of_a_pipeline_names_need_trust(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "sd"))
    edit_index(copy, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (copy / "safety_checker").mkdir(exist_ok=True)
    config = {"model_type": "clip", "attn_implementation": "org/kernel@main"}
    (copy / "safety_checker" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="names 'org/kernel@main', whose code would be downloaded and run"):
        generator(copy).load()


def test_a_configuration_is_for_files_alone(folder: Path) -> None:
    with pytest.raises(InputError, match=r"config: .* is no single file"):
        generator(folder, config=str(folder)).load()


def test_the_home_folder_can_be_written_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert generator(f"~/{folder.name}").fingerprint == generator(folder).fingerprint
    assert drawn(f"~/{folder.name}", vae=f"~/{folder.name}/vae") == drawn(folder)


# --- autoencoders ----------------------------------------------------------------------------------------------------


class _Canary:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._mark,)


def test_a_pickle_that_an_index_of_weights_names_calls_nothing(folder: Path, tmp_path: Path) -> None:
    unet = Path(shutil.copytree(folder, tmp_path / "sd")) / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "other.safetensors")
    (unet / "weights.bin").write_bytes(pickle.dumps(_Canary(tmp_path / "called")))
    index = {"metadata": {"total_size": 1, "all_checkpoint_keys": ["a"]}, "weight_map": {"a": "weights.bin"}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BackendError, match=r"weights\.bin"):
        DiffusersGenerator(str(unet.parent), name="sd", options=SMALL).load()
    assert not (tmp_path / "called").exists()


def test_compiled_code_of_another_user_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # PyTorch sets it, and the test's end takes that back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    own_id = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: own_id + 1)
    backend = DiffusersGenerator(str(folder), name="sd", options=SMALL.model_copy(update={"compile": True}))
    with pytest.raises(InputError, match="belongs to another user; set TORCHINDUCTOR_CACHE_DIR"):
        backend.load()
    monkeypatch.setattr("os.getuid", lambda: own_id)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    monkeypatch.setattr(diffusers.ModelMixin, "compile_repeated_blocks", lambda *_, **__: None)
    backend.load()


@pytest.fixture
def other_vae(folder: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder / "vae", tmp_path / "other-vae"))
    for file in copy.glob("*.safetensors"):
        save_file({name: tensor * 0.5 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return copy


def test_another_autoencoder_decodes(folder: Path, other_vae: Path) -> None:
    plain = drawn(folder)
    assert drawn(folder, vae=str(other_vae)) != plain
    assert drawn(folder, vae=str(folder)) == plain  # a pipeline's folder holds one in vae
    [file] = other_vae.glob("*.safetensors")
    assert drawn(folder, vae=str(file)) == drawn(folder, vae=str(other_vae))
    assert "+vae:" in generator(folder, vae=str(other_vae)).fingerprint


def test_an_autoencoder_of_another_kind_is_refused(folder: Path, z_image: Path, tmp_path: Path) -> None:
    wide = save_tiny("StableDiffusionXLPipeline", tmp_path / "xl")
    config = wide / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": 4', '"latent_channels": 16'))
    with pytest.raises(InputError, match=r"vae: .* has 16 channels \(latent_channels\), and the pipeline needs 4"):
        generator(folder, vae=str(wide / "vae")).load()
    config.write_text(config.read_text().replace("AutoencoderKL", "AutoencoderTiny"))
    with pytest.raises(InputError, match=r"vae: .* holds a AutoencoderTiny, and the pipeline needs a AutoencoderKL"):
        generator(folder, vae=str(wide / "vae")).load()
    with pytest.raises(InputError, match="vae: there is no VAE in"):
        generator(folder, vae=str(tmp_path / "nowhere")).load()


# --- schedulers ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_another_scheduler_draws_another_image(folder: Path, z_image: Path) -> None:
    assert drawn(folder, scheduler="DPMSolverMultistepScheduler", steps=3) != drawn(folder, steps=3)
    assert drawn(z_image, scheduler="FlowMatchLCMScheduler") != drawn(z_image)


def test_a_scheduler_that_does_not_fit_is_refused_with_those_that_do(folder: Path, z_image: Path) -> None:
    with pytest.raises(InputError, match=r"scheduler: StableDiffusionPipeline takes .*EulerDiscreteScheduler"):
        generator(folder, scheduler="FlowMatchEulerDiscreteScheduler").load()
    with pytest.raises(InputError, match=r"scheduler: ZImagePipeline takes .*FlowMatchLCMScheduler") as caught:
        generator(z_image, scheduler="DDIMScheduler").load()
    assert "FlowMatchHeun" not in str(caught.value)  # it takes no sigmas, which the pipeline hands over


def test_the_own_scheduler_is_always_compatible() -> None:
    for own in (diffusers.DDIMScheduler, diffusers.FlowMatchEulerDiscreteScheduler, diffusers.LCMScheduler):
        assert compatible_schedulers(own, {})[own.__name__] is own


def test_a_flow_is_integrated_by_schedulers_that_can() -> None:
    names = compatible_schedulers(diffusers.DPMSolverMultistepScheduler, {"use_flow_sigmas": True})
    assert "UniPCMultistepScheduler" in names
    assert "DDIMScheduler" not in names
    assert "DDIMScheduler" in compatible_schedulers(diffusers.DPMSolverMultistepScheduler, {})


# --- the length of prompts -------------------------------------------------------------------------------------------


def test_the_length_of_prompts_can_be_set(z_image: Path) -> None:
    assert drawn(z_image, max_sequence_length=4) != drawn(z_image)


def test_a_length_that_the_class_refuses_is_refused_before(tmp_path: Path) -> None:
    folder = save_tiny("FluxPipeline", tmp_path / "flux")
    with pytest.raises(InputError, match="max_sequence_length 600: FluxPipeline reads at most 512 tokens"):
        generator(folder, max_sequence_length=600).load()


@pytest.mark.parametrize("kind", sorted(MOST_TOKENS))
def test_the_largest_lengths_are_those_of_the_classes(kind: str) -> None:
    source = inspect.getsource(getattr(diffusers, kind).check_inputs)
    assert f"max_sequence_length > {MOST_TOKENS[kind]}" in source


# --- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA weights of rank 1 for two of the U-Net's projections."""
    torch.manual_seed(3)
    tensors = {}
    for projection in ("to_q", "to_v"):
        prefix = f"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.{projection}"
        width = 32 if projection == "to_q" else 16
        tensors |= {
            f"{prefix}.lora_A.weight": torch.randn(1, width) * 3,
            f"{prefix}.lora_B.weight": torch.randn(32, 1) * 3,
        }
    file = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(tensors, file)
    return file


@pytest.fixture
def missing_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find_spec(name, *a))


@pytest.mark.usefixtures("missing_peft")
def test_without_its_package_a_lora_says_how_to_install_it(folder: Path, lora: Path) -> None:
    with pytest.raises(InputError, match=r"lora: .*peft: pip install .*peft.*\(the extra 'lora'\)"):
        generator(folder, lora=(str(lora),)).load()


def test_a_lora_that_is_not_there_or_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lora: there is no file"):
        generator(folder, lora=(str(tmp_path / "none.safetensors:0.5"),)).load()
    (tmp_path / "style.pt").touch()
    with pytest.raises(InputError, match=r"lora: .* is no .safetensors file"):
        generator(folder, lora=(str(tmp_path / "style.pt"),)).load()


def test_the_scale_of_a_lora_stands_after_a_colon() -> None:
    options = GeneratorOptions.model_validate(
        {"lora": ["a/style.safetensors:0.5", "b:c/d.safetensors", "e.safetensors"]}
    )
    assert [(str(lora.path), lora.scale) for lora in loras_of(options)] == [
        ("a/style.safetensors", 0.5),
        ("b:c/d.safetensors", 1.0),
        ("e.safetensors", 1.0),
    ]
    assert GeneratorOptions.model_validate({"lora": "one.safetensors"}).lora == ("one.safetensors",)


def test_the_fingerprint_holds_each_lora_and_its_scale(folder: Path, lora: Path) -> None:
    fingerprints = {
        generator(folder, lora=loras).fingerprint
        for loras in ((), (str(lora),), (f"{lora}:0.5",), (str(lora), f"{lora}:0.5"))
    }
    assert len(fingerprints) == 4


@NEEDS_PEFT
def test_lora_weights_change_the_image_by_their_scale(folder: Path, lora: Path) -> None:
    plain, whole, half, none = (
        drawn(folder, lora=loras) for loras in ((), (str(lora),), (f"{lora}:0.5",), (f"{lora}:0",))
    )
    assert plain == none
    assert plain != whole != half != plain
    assert drawn(folder, lora=(f"{lora}:0.5", f"{lora}:0.5")) != half


@NEEDS_PEFT
def test_lora_weights_for_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"transformer.nowhere.lora_A.weight": torch.zeros(1, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"lora: .*other.safetensors") as caught:
        generator(folder, lora=(str(tmp_path / "other.safetensors"),)).load()
    assert "\n" not in str(caught.value)


# --- modular repositories --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modular(z_image: Path) -> Path:
    """The same weights as a modular repository, which was written elsewhere."""
    from diffusers.modular_pipelines.z_image import ZImageAutoBlocks

    pipeline = ZImageAutoBlocks().init_pipeline()
    pipeline.update_components(**diffusers.ZImagePipeline.from_pretrained(z_image).components)
    elsewhere, folder = z_image.parent / "elsewhere", z_image.parent / "modular"
    pipeline.save_pretrained(str(elsewhere), overwrite_modular_index=True)
    elsewhere.rename(folder)
    return folder


def test_a_modular_repository_draws_as_its_pipeline_does(z_image: Path, modular: Path) -> None:
    steps: list[Step] = []
    backend = generator(modular, batch_size=2)
    requests = [ImageRequest("a car", 1), ImageRequest("a dog", 2)]
    results = [r for r in backend.generate(requests, on_step=steps.append) if not isinstance(r, BackendError)]
    assert [pixels(r) for r in results] == [pixels(r) for r in images(generator(z_image, batch_size=2), requests)]
    assert {(at.index, at.step) for at in steps} == {(index, step) for index in (0, 1) for step in (1, 2)}
    line = backend.check()
    assert "ZImagePipeline" in line
    assert "edits no images" in line
    assert "Chinese" in backend.guide


def test_a_modular_repository_refuses_what_it_cannot_do(modular: Path) -> None:
    with pytest.raises(InputError, match="takes no guidance_scale"):
        generator(modular, guidance_scale=3.0).load()
    with pytest.raises(InputError, match="lora: ZImagePipeline takes no LoRA weights"):
        generator(modular, lora=("x.safetensors",)).load()


@pytest.mark.parametrize(
    ("blocks", "words"),
    [("MyOwnBlocks", "of blocks .MyOwnBlocks. that diffusers"), ("WanBlocks", "no images from text")],
)
def test_other_modular_repositories_are_refused_in_one_line(
    modular: Path, tmp_path: Path, blocks: str, words: str
) -> None:
    folder = Path(shutil.copytree(modular, tmp_path / "other"))
    index = folder / "modular_model_index.json"
    index.write_text(index.read_text().replace("ZImageAutoBlocks", blocks))
    with pytest.raises(BackendError, match=words) as caught:
        generator(folder).load()
    assert "\n" not in str(caught.value)


def save_asking(folder: Path, trace: Path, *, is_processor: bool) -> Path:
    """A pipeline whose tokenizer is code beside it, which leaves a trace when it runs."""
    save_tiny("StableDiffusionPipeline", folder)
    edit_index(folder, tokenizer=["transformers", "Qwen2VLProcessor" if is_processor else "AutoTokenizer"])
    config = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {
        "tokenizer_class": "Own",
        "auto_map": {"AutoTokenizer": ["own.Own"] * 2},
    }
    config.write_text(json.dumps(settings))
    for code in (folder / "own.py", folder / "tokenizer" / "own.py"):
        code.write_text(
            f"open({str(trace)!r}, 'w')\nfrom transformers import CLIPTokenizer\nclass Own(CLIPTokenizer): pass\n"
        )
    return folder


@pytest.mark.parametrize("is_processor", [False, True])
def test_nobody_is_asked_whether_code_beside_the_weights_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_processor: bool
) -> None:
    """Transformers would ask on the terminal, and take a line of the standard input for the answer."""
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "y")
    folder = save_asking(tmp_path / "weights", tmp_path / "it-ran", is_processor=is_processor)
    generator = DiffusersGenerator(str(folder), name="tiny", options=GeneratorOptions(width=SIZE, height=SIZE, steps=1))
    with pytest.raises(BackendError, match="cannot load its tokenizer"):
        generator.check()
    for request in (lambda: excess_of(generator, "a dog"), generator.load):
        with suppress(BackendError):
            request()
    assert not questions
    assert not (tmp_path / "it-ran").exists()
