"""Benchmark prompts: read from a user's file, freshly generated, and refused if the file is malformed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gems.errors import InputError
from gems.evals.prompts import ATOMS, fresh_prompts, read_geneval2, write_prompts
from gems.models.pocket.grammar import parse_prompt

ROW = {
    "prompt": "three red cats to the left of a dog",
    "atom_count": 5,
    "vqa_list": [
        ["How many cats are in the image?", "three"],
        ["Are the cats red?", "Yes"],
        ["Are there any cats in the image?", "Yes"],
        ["Are the cats to the left of the dog?", "Yes"],
        ["How many dogs are in the image?", "one"],
        ["Are there any dogs in the image?", "Yes"],
    ],
    "skills": ["count", "attribute", "object", "position", "count", "object"],
}


def test_a_benchmark_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n")
    [prompt] = read_geneval2(path)
    assert prompt.row() == ROW


def test_fresh_prompts_follow_the_benchmark(tmp_path: Path) -> None:
    prompts = fresh_prompts(64, seed=3)
    assert prompts == fresh_prompts(64, seed=3)
    assert prompts != fresh_prompts(64, seed=4)
    assert fresh_prompts(32, seed=3) == prompts[:32]
    assert len({p.prompt for p in prompts}) == 64
    assert [p.atoms for p in prompts[:8]] == list(ATOMS)
    for prompt in prompts:
        spec = parse_prompt(prompt.prompt)
        assert spec.atoms == prompt.atoms
        single_things = sum(group.count == 1 for group in spec.groups)
        assert len(prompt.questions) == prompt.atoms + single_things  # "a" has a question but is no atom
    write_prompts(prompts, tmp_path / "p.jsonl")
    assert read_geneval2(tmp_path / "p.jsonl") == prompts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "contains no prompt"),
        ("{", "line 1: not a row of GenEval 2"),
        (json.dumps({"prompt": "a cat"}), "line 1: not a row of GenEval 2"),
        (json.dumps({**ROW, "skills": ["count"]}), "line 1: not a row of GenEval 2"),
        (json.dumps({**ROW, "vqa_list": [], "skills": []}), "line 1: not a row of GenEval 2"),
        (f"{json.dumps(ROW)}\n{json.dumps(ROW)}", "a prompt twice"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_geneval2(path)
