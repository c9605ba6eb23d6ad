from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_generator import HELD_OUT, Dataset, Settings, batches, main, train

from gems.models.pocket.pipeline import PocketPipeline

TINY = Settings(width=16, layers=1, heads=2, text_width=16, text_layers=1, steps=6, batch=4, warmup=2, scenes=600)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        **load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"),
        **load_file(folder / "text_encoder" / "model.safetensors"),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    train(TINY, out)
    return out


def test_a_finished_run_is_a_pipeline_that_draws(finished: Path) -> None:
    pipeline = PocketPipeline.from_pretrained(str(finished))
    pipeline.set_progress_bar_config(disable=True)
    [image] = pipeline("two red cars", generator=torch.Generator().manual_seed(0)).images
    assert image.size == (512, 512)
    assert not list(finished.rglob("*.bin"))


def test_a_resumed_training_gives_the_same_weights(finished: Path, tmp_path: Path) -> None:
    train(TINY, tmp_path, stop_at=3)
    halfway = weights(tmp_path)
    train(TINY, tmp_path)
    expected, resumed = weights(finished), weights(tmp_path)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert not all(torch.equal(expected[name], halfway[name]) for name in expected)


def test_a_draft_left_by_a_killed_run_does_no_harm(finished: Path, tmp_path: Path) -> None:
    train(TINY, tmp_path, stop_at=3)
    (tmp_path / "training" / "checkpoint.tmp").write_bytes(b"half a checkpoint")
    train(TINY, tmp_path)
    expected, resumed = weights(finished), weights(tmp_path)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_checkpoint_of_other_settings_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(finished), "--width", "24", "--scenes", "600"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_scene_has_either_a_terse_caption_or_rich_ones() -> None:
    data = Dataset.make(HELD_OUT + 8, seed=1)
    terse = {tuple(row) for row in data.captions[:, 0].tolist()}
    batch_list = batches(data, replace(TINY, terse=0.5, dropout=0.0), 0)
    kinds: dict[bytes, set[bool]] = {}
    for _ in range(40):
        batch = next(batch_list)
        for slots, tokens in zip(batch.slots.numpy(), batch.tokens.tolist(), strict=True):
            padded = tuple(tokens + [0] * (data.captions.shape[2] - len(tokens)))
            kinds.setdefault(slots.tobytes(), set()).add(padded in terse)
    assert all(len(kind) == 1 for kind in kinds.values())
    assert {kind.pop() for kind in kinds.values()} == {True, False}
