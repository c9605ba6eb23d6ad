"""Golden runs: sixty recorded commands. A change that should alter no behaviour proves it by repeating them.

    python benchmarks/golden_runs.py compare [FILE]
    python benchmarks/golden_runs.py record [FILE]

FILE is benchmarks/golden_runs.json by default. Each entry holds a command's exit code and its result: run.json, a
batch's rows, or a listing as JSON. Times, paths, random identifiers and the version are left out; image hashes,
prompts, verdicts, usage and settings are kept. Error texts are not compared. The schemas of the context and the HTTP
interface are entries too, without titles and descriptions.

Image hashes depend on the machine's floating-point units: record and compare on the same kind of machine. ``compare``
prints every difference and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ["GEMS_MLLM"] = os.environ["GEMS_GENERATOR"] = "pocket"  # the models that the recorded runs are of

from forked import gems, run

RECORDED = Path(__file__).with_name("golden_runs.json")

VOLATILE = frozenset(
    {
        "run_id",
        "thread",
        "seconds",
        "started_at",
        "finished_at",
        "gems_version",
        "uri",
        "paths",
        "file",
        "run",
        "batch_id",
        "created_at",
        "updated_at",
        "at",
        "memory_url",
        "images_url",
        "skills_dir",
        "where",
        "folder",
        "place",
        "detail",
        "id_of_batch",
        "started",
        "finished",
        "when",
    }
)
"""Keys whose values differ from run to run, or from machine to machine."""

GENERATE: list[list[object]] = [
    *(
        [prompt, "--seed", seed]
        for seed, prompt in enumerate(
            [
                "two red cars",
                "three blue cars to the left of a striped elephant",
                "a dog behind two chairs",
                "five yellow rabbits",
                "a wooden bicycle and a green backpack",
                "four cats chasing a bird",
                "a pink donut under a chair",
                "seven cookies",
                "a metal horse in front of three lions",
                "two spotted cows, three backpacks and a truck",
                "a glass guitar on top of a suitcase",
                "six black sheep",
                "a yellow umbrella above a white truck",
                "a plastic guitar to the right of a brown bear",
                "three zebras jumping over a turtle",
            ]
        )
    ),
    *(["three blue cars to the left of a striped elephant", "--seed", seed] for seed in range(100, 110)),
    ["two red cars behind a dog", "--seed", 7, "--candidates", 3],
    ["five green dogs and a candle", "--seed", 8, "--candidates", 2, "--max-rounds", 3],
    ["six cats", "--seed", 9, "--no-plan"],
    ["six cats", "--seed", 9, "--no-skills"],
    ["six cats", "--seed", 9, "--no-plan", "--no-skills", "--max-rounds", 1],
    ["seven purple horses", "--seed", 10, "--budget-images", 2],
    ["seven purple horses", "--seed", 10, "--budget-chat-calls", 3],
    ["seven purple horses", "--seed", 10, "--budget-tokens", 1500],
    ["seven striped elephants and four blue cars", "--seed", 11, "--patience", 1],
    ["seven striped elephants and four blue cars", "--seed", 11, "--no-memory"],
    ["seven striped elephants and four blue cars", "--seed", 12, "--generator", "pocket-large"],
    ["two red cars", "--seed", 13, "--generator-option", "steps=4"],
    ["two red cars", "--seed", 14, "--no-builtin-skills"],
    ["two red cars", "--seed", 15, "--price", "image=0.04", "--budget-cost", "0.1"],
    ["two red cars", "--seed", 16, "--user", "ann"],
]
BAD: list[list[object]] = [
    ["generate", ""],
    ["generate", "a blue dragon"],
    ["generate", "a cat", "--mllm", "gpt-nonsense"],
    ["generate", "a cat", "--generator", "stable-confusion"],
    ["generate", "a cat", "--max-rounds", 0],
    ["generate", "--resume", "no-such-run"],
    ["generate", "a cat", "--generator", "diffusers:/nowhere"],
    ["replay", "/nowhere"],
    ["export", "/nowhere", "--to", "webdataset", "--out", "x"],
    ["skills", "show", "no-such-skill"],
    ["doctor", "--generator", "nonsense"],
]


def stable(value: Any) -> Any:
    """The value without what differs between two runs of the same thing."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in sorted(value.items()) if k not in VOLATILE}
    if isinstance(value, list):
        return [stable(v) for v in value]
    if isinstance(value, str):
        return re.sub(r"/\S*/", "", value)
    return value


def bare(schema: Any) -> Any:
    """A JSON schema without the texts for people. A property may have the name of such a text."""
    if isinstance(schema, list):
        return [bare(v) for v in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        k: bare(v)
        for k, v in sorted(schema.items())
        if not (k in ("description", "title", "summary") and isinstance(v, str)) and k != "operationId"
    }


def read_json(text: str) -> Any:
    """The stable part of a command's JSON output; None if it printed none."""
    try:
        return stable(json.loads(text))
    except ValueError:
        return None


def runs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every golden command in order; those of one home folder learn from each other."""
    home, out = folder / "home", folder / "out"

    def entry(*arguments: object, keep: bool = True, at: Path = home) -> tuple[str, dict[str, Any]]:
        process = gems(*arguments, home=at, cwd=folder, timeout=300)
        result = read_json(process.stdout) if keep else None
        name = " ".join(map(str, arguments)).replace(str(folder), "F")
        return name, {"exit": process.returncode, "output": result}

    for number, arguments in enumerate(GENERATE):
        own = folder / "homes" / str(number)
        yield entry("generate", *arguments, "--out", out, "--json", "--quiet", at=own)
    for prompt, more in (
        ("a blue car", []),
        ("a blue car", ["--reuse"]),
        ("two blue cars", []),
        ("three blue cars", []),
    ):
        yield entry("generate", prompt, "--seed", 21, *more, "--out", out, "--json", "--quiet")
    yield entry("memory", "search", "four blue cars", "--json")
    yield entry("skills", "list", "--json")
    newest = max(out.glob("*/run.json"), key=lambda path: path.stat().st_mtime).parent
    name, result = entry("replay", newest, "--json")
    yield "replay the newest run", result
    for arguments in BAD:
        yield entry(*arguments, keep=False, at=folder / "bad")
    prompts = folder / "prompts.jsonl"
    words = ["two red cars", "five yellow rabbits", "a dog behind two chairs", "a wooden bicycle"]
    prompts.write_text("".join(json.dumps({"prompt": w, "id": f"p{i}"}) + "\n" for i, w in enumerate(words)))
    for k, more in enumerate(([], ["--candidates", 2, "--max-rounds", 2], ["--total-images", 2, "--concurrency", 1])):
        name, result = entry(
            "batch",
            prompts,
            "--out",
            folder / f"b{k}",
            "--seed",
            5,
            "--concurrency",
            1,
            "--quiet",
            *more,
            at=folder / f"h{k}",
        )
        lines = (folder / f"b{k}" / "results.jsonl").read_text().splitlines()
        result["rows"] = sorted((stable(json.loads(line)) for line in lines), key=lambda row: str(row.get("index")))
        yield name, result
    process = gems("graph", home=home)
    arrows = re.sub(r"description = [^<]*", "", process.stdout)
    yield "graph", {"exit": process.returncode, "output": arrows}
    process = run([sys.executable, "-c", SCHEMAS], cwd=folder)
    yield "schemas", {"exit": process.returncode, "output": bare(json.loads(process.stdout))}


SCHEMAS = """
import json, tempfile
from pathlib import Path
from gems import GemsContext, build_graph
from gems.serve.settings import ServiceSettings
from gems.serve.web_app import make_app
graph = build_graph()
print(json.dumps({
    "context": GemsContext.model_json_schema(),
    "input": graph.get_input_jsonschema(),
    "output": graph.get_output_jsonschema(),
    "http": make_app(ServiceSettings(home=Path(tempfile.mkdtemp()))).openapi(),
}))
"""


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """A line for each value that was added, is gone or has changed."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if key not in before:
                yield f"{where}/{key}: added: {json.dumps(after[key])[:200]}"
            elif key not in after:
                yield f"{where}/{key}: gone: {json.dumps(before[key])[:200]}"
            else:
                yield from differences(before[key], after[key], f"{where}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from differences(a, b, f"{where}/{index}")
    elif before != after:
        yield f"{where}: {json.dumps(before)[:200]} -> {json.dumps(after)[:200]}"


def main() -> int:
    """Run all commands, then record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path, nargs="?", default=RECORDED)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gems-golden-") as folder:
        for name, result in runs(Path(folder)):
            results[name] = result
            print(f"{len(results):3} {result['exit']} {name[:110]}", file=sys.stderr, flush=True)
    if options.action == "record":
        options.file.write_text(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return 0
    lines = list(differences(json.loads(options.file.read_text()), results))
    print(*lines, f"{len(lines)} differences in {len(results)} entries", sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
