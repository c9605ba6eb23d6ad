"""How much of a prompt a pipeline reads, measured with its own tokenizer, and what is said of the remainder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conformance.generator_suite import images
from tiny_pipelines import SIZE, edit_index, save_tiny

from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.generators import ImageRequest, excess_of
from gems.options import GeneratorOptions

SMALL = GeneratorOptions(width=SIZE, height=SIZE, steps=1)
LONG = " ".join(["harbour"] * 120)
"""With tiny tokenizers a letter is a token: 840 letters and 119 spaces, if spaces count."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lengths")
    for kind in ("StableDiffusionXLPipeline", "FluxPipeline", "StableDiffusion3Pipeline", "ZImagePipeline"):
        save_tiny(kind, root / kind)
    return root


def generator(folder: Path) -> DiffusersGenerator:
    return DiffusersGenerator(str(folder), name="tiny", options=SMALL)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("StableDiffusionXLPipeline", 77),
        ("FluxPipeline", 512),
        ("StableDiffusion3Pipeline", 256),
        ("ZImagePipeline", 512),
    ],
)
def test_what_is_not_read_is_told_in_numbers(folders: Path, kind: str, limit: int) -> None:
    backend = generator(folders / kind)
    assert excess_of(backend, "a car") == ""
    excess = excess_of(backend, LONG)
    numbers = [int(number) for number in re.findall(r"\d+", excess)]
    assert numbers[0] == limit
    assert numbers[1] > 840
    assert 1 <= numbers[2] < 120
    assert excess_of(backend, " ".join(LONG.split()[: numbers[2]])) == ""


def test_the_encoder_that_reads_most_counts(folders: Path, tmp_path: Path) -> None:
    """Without its T5, Stable Diffusion 3 has CLIP alone."""
    folder = save_tiny("StableDiffusion3Pipeline", tmp_path / "without-t5")
    edit_index(folder, text_encoder_3=[None, None], tokenizer_3=[None, None])
    hundred = "a" * 100
    assert excess_of(generator(folders / "StableDiffusion3Pipeline"), hundred) == ""
    assert "77 tokens" in excess_of(generator(folder), hundred)


def test_nothing_is_said_of_a_tokenizer_that_is_not_here(tmp_path: Path) -> None:
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert excess_of(generator(tmp_path), LONG) == ""


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_image_says_that_its_prompt_was_cut(folders: Path) -> None:
    backend = generator(folders / "StableDiffusionXLPipeline")
    whole, cut = images(backend, [ImageRequest("a car", 1), ImageRequest(LONG, 2)])
    assert whole.note is None
    assert cut.note is not None
    assert re.fullmatch(r"tiny: The model reads 77 tokens and the prompt has \d+, so its end is not read", cut.note)
