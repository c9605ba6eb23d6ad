"""Pipeline classes with tiny random weights draw through `gems generate`.

``benchmarks/pipeline_families.py`` runs all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from family_checks import behaviour_of

CLASSES = (
    # Of each kind, the ones that are quick: how prompts are taken, encoded and switched, what is called at each step,
    # what the output holds, how many stages there are, and which parts diffusers itself does not find.
    "AltDiffusionPipeline",
    "AmusedPipeline",
    "AuraFlowPipeline",
    "BriaFiboPipeline",
    "DreamLitePipeline",
    "ErnieImagePipeline",
    "Flux2Pipeline",
    "IFPipeline",
    "Krea2Pipeline",
    "LatentConsistencyModelPipeline",
    "LongCatImagePipeline",
    "Lumina2Pipeline",
    "NucleusMoEImagePipeline",
    "OmniGenPipeline",
    "PixArtSigmaPipeline",
    "QwenImage21Pipeline",
    "StableDiffusionLDM3DPipeline",
    "StableDiffusionParadigmsPipeline",
    "StableUnCLIPPipeline",
    "ZImageOmniPipeline",
)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",  # schedulers use an `__array__` call that NumPy 2 deprecates
)
@pytest.mark.parametrize("name", CLASSES)
def test_a_class_draws_with_seeds_batches_and_stops(name: str, tmp_path: Path) -> None:
    behaviour = behaviour_of(name, tmp_path)
    assert behaviour.is_right, behaviour
