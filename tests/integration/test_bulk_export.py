"""Exports: wherever the folders are and whatever their names, and without touching what is not the export's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any, cast

import forked
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gems.bulk.export import Choice, export, write_index
from gems.bulk.export_folder import lock_draft
from gems.bulk.jobs import Job, JobFields
from gems.bulk.results import (
    AttemptFields,
    BatchRow,
    ResultsFile,
    UsageFields,
    claim,
    read_manifest,
    row_of,
    saved_jobs,
    write_jobs,
)
from gems.errors import BackendError, InputError
from gems.graph.context import GemsContext
from gems.graph.state import Requirement, Usage

ODD_NAMES = ["my results", "100%", "50%20off", "a#b", "what?", "brüche 図", "[x]*", "a&b;c"]
FORMATS = ["webdataset", "imagefolder", "preferences"]


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def attempt(images: Path, shade: int, round_: int, score: float) -> dict[str, Any]:
    png = picture(shade)
    digest = hashlib.sha256(png).hexdigest()
    path = images / digest[:2] / f"{digest}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
    return {
        "round": round_,
        "candidate": 0,
        "strategy": "plan",
        "prompt": "p",
        "seed": round_,
        "score": score,
        "passed": round_,
        "total": 2,
        "verdicts": {"r1": ["yes", 0.9]},
        "image": f"file://{path}",
        "sha256": digest,
        "edited_from": "",
    }


def make_batch(out: Path, ids: tuple[str | None, ...] = ("a", None, "7")) -> Path:
    """A batch of solved prompts with two attempts each."""
    out.mkdir(parents=True)
    batch = claim(out, GemsContext(), {})
    jobs = [Job(i, f"prompt {i}", i, id=id_, line=i + 1) for i, id_ in enumerate(ids)]
    write_jobs(out, jobs)
    record = ResultsFile(out / "results.jsonl", bound_to=batch.bound_to)
    for job in jobs:
        attempts = [attempt(out / "images", 2 * job.index + n, n, n / 2) for n in (1, 2)]
        fields: Any = {"outcome": "solved", "attempts": attempts, "best": 1, "bound_to": batch.bound_to}
        record.add({**row_of(job), **fields})
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_of_a_folder_will_do(name: str, tmp_path: Path) -> None:
    source = make_batch(tmp_path / name / "out")
    for kind in FORMATS:
        exported = export(source, kind, tmp_path / name / f"{kind} {name}")
        assert (exported.examples, exported.skipped) == (3, 0)
    moved = shutil.copytree(source, tmp_path / "elsewhere" / name)
    shutil.rmtree(source)
    assert export(moved, "webdataset", tmp_path / "again" / name).examples == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my results", "50%20off #1?"])
def test_a_batch_runs_and_is_exported_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "p.txt").write_text("a red car\n")
    arguments = ("batch", folder / "p.txt", "--out", folder / "out", "--no-plan", "--evidence")
    result = forked.gems(*arguments, home=folder / "home")
    assert result.returncode == 0, result.stderr
    command = ("export", folder / "out", "--to", "webdataset", "--all", "--out", folder / "shards", "--json")
    assert json.loads(forked.gems(*command, home=folder / "home").stdout)["examples"] == 1
    [row] = pq.read_table(folder / "out" / "index.parquet").to_pylist()
    assert Path(row["image"].removeprefix("file://")).exists()


def test_ids_are_the_same_text_in_all_outputs(tmp_path: Path) -> None:
    source = make_batch(tmp_path / "out", ids=("7", None, '{"a": 1}'))
    export(source, "webdataset", tmp_path / "w")
    with tarfile.open(tmp_path / "w" / "gems-000000.tar") as archive:
        members = [archive.extractfile(m) for m in archive.getmembers() if m.name.endswith(".json")]
        ids = [json.load(member)["id"] for member in members if member]
    export(source, "imagefolder", tmp_path / "i")
    lines = (tmp_path / "i" / "train" / "metadata.jsonl").read_text().splitlines()
    export(source, "preferences", tmp_path / "p")
    pairs = pq.read_table(tmp_path / "p" / "data" / "train-00000.parquet").to_pylist()
    assert ids == [json.loads(line)["id"] for line in lines] == [pair["id"] for pair in pairs]
    assert ids == ["7", None, '{"a": 1}']


def test_only_what_an_export_made_is_replaced(tmp_path: Path) -> None:
    source, target = make_batch(tmp_path / "out"), tmp_path / "data"
    export(source, "imagefolder", target)
    made = set(files(target))
    mine = {"README.md": b"my notes", "train/extra.png": b"mine", "notes/more.txt": b"more"}
    for name, content in mine.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    export(source, "webdataset", target)
    now = files(target)
    assert {name: now[name] for name in mine} == mine
    assert set(now) == {*mine, ".gems-export.json", "gems-000000.tar"}
    export(source, "imagefolder", target)
    assert set(files(target)) == {*mine, *made}
    (target / "notes" / "more.txt").unlink()
    export(source, "preferences", target)
    assert (target / "notes").is_dir()  # an empty folder that the export did not make


def test_a_file_that_was_changed_since_is_kept(tmp_path: Path) -> None:
    source, target = make_batch(tmp_path / "out"), tmp_path / "data"
    export(source, "imagefolder", target)
    metadata = target / "train" / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + '{"file_name": "mine.png"}\n')
    before = files(target)
    with pytest.raises(InputError, match="was changed since it was exported"):
        export(source, "webdataset", target)
    assert files(target) == before


def test_a_file_with_the_name_of_a_new_one_is_kept(tmp_path: Path) -> None:
    source, target = make_batch(tmp_path / "out"), tmp_path / "data"
    export(source, "imagefolder", target)
    (target / "gems-000000.tar").write_bytes(b"mine")
    before = files(target)
    with pytest.raises(InputError, match="is not the export's"):
        export(source, "webdataset", target)
    assert files(target) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        *[(name, None) for name in ("../mine.txt", "/etc/hostname", "link/mine.txt", "..", "a/../../mine.txt")],
        *[(name, None) for name in ("a\0b", "circle/a", "a" * 5000)],
        *[(name, "") for name in ("own", "own/", ".", "")],
    ],
)
def test_a_manifest_of_somebody_else_deletes_nothing(name: str, digest: str | None, tmp_path: Path) -> None:
    source, target, outside = make_batch(tmp_path / "out"), tmp_path / "data", tmp_path / "mine.txt"
    outside.write_text("years of work")
    target.mkdir()
    (target / "link").symlink_to(tmp_path)
    (target / "own").mkdir()
    own_digest = hashlib.sha256(b"years of work").hexdigest()
    manifest = json.dumps({"files": {name: own_digest if digest is None else digest}})
    (target / ".gems-export.json").write_text(manifest)
    (target / "circle").symlink_to(target / "circle")
    with pytest.raises(InputError, match="which is no file of an export"):
        export(source, "webdataset", target)
    assert outside.read_text() == "years of work"
    assert (target / ".gems-export.json").read_text() == manifest


@pytest.mark.parametrize("manifest", ["{", "[]", '{"files": 7}', '{"format": "webdataset"}'])
def test_a_manifest_that_cannot_be_read_is_refused(manifest: str, tmp_path: Path) -> None:
    source, target = make_batch(tmp_path / "out"), tmp_path / "data"
    target.mkdir()
    (target / ".gems-export.json").write_text(manifest)
    with pytest.raises(InputError, match="cannot be read"):
        export(source, "webdataset", target)


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    source, target = make_batch(tmp_path / "out"), tmp_path / "data"
    export(source, "webdataset", target)
    before = files(target)
    for path in (source / "images").rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(BackendError, match="is damaged"):
        export(source, "imagefolder", target)
    assert files(target) == before


def test_drafts_of_killed_exports_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    source, target = make_batch(tmp_path / "out"), tmp_path / "data"
    drafts = {name: tmp_path / f".data.{name * 32}" for name in "abc"}
    locks = [lock_draft(drafts["a"])]
    for name in "bc":
        os.close(lock_draft(drafts[name]))
    other = tmp_path / ".data.old"
    other.mkdir()
    for folder in (drafts["a"], drafts["b"], other):
        (folder / "shard.tar").write_bytes(b"half")
        os.utime(folder, (1, 1))
    export(source, "webdataset", target)
    assert {name for name, path in drafts.items() if path.exists()} == {"a", "c"}  # locked; just made
    assert other.exists()
    os.close(locks[0])


def test_a_row_does_not_say_what_is_read(tmp_path: Path) -> None:
    """Somebody's results name an image elsewhere: it is told, and read from the store that the user names alone."""
    source = make_batch(tmp_path / "out")
    store = (source / "images").rename(tmp_path / "store")
    with pytest.raises(BackendError, match="name the store that holds it with --images"):
        export(source, "webdataset", tmp_path / "w")
    assert export(source, "webdataset", tmp_path / "w", images=str(store)).examples == 3


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_passes_on_pixels_and_nothing_that_somebody_hid_among_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, secret = picture, b"\0\0\0\x06prVtsecret" + zlib.crc32(b"prVtsecret").to_bytes(4, "big")
    monkeypatch.setitem(globals(), "picture", lambda shade: whole(shade)[:33] + secret + whole(shade)[33:] + secret)
    source = make_batch(tmp_path / "out")
    assert export(source, kind, tmp_path / "x").examples == 3
    content = b"".join(files(tmp_path / "x").values())
    assert b"IDAT" in content
    assert b"secret" not in content


def test_rows_and_exports_say_all_about_the_image_that_was_returned(tmp_path: Path) -> None:
    source, spent = make_batch(tmp_path / "out", ids=("a",)), Usage(images=2, prompt_tokens=9, extra_cost=0.5)
    record = ResultsFile(source / "results.jsonl", bound_to=read_manifest(source)["bound_to"])
    [row] = record.rows(saved_jobs(source))
    more: dict[str, Any] = {
        "usage": spent.model_dump(mode="json"),
        "run_id": "r",
        "error_kind": "input",
        "skills": ["counting"],
    }
    row["attempts"][1].update(quality=0.25, flaws="three hands", negative_prompt="people")
    record.add(cast(BatchRow, {**row, **more}))
    looks = {"quality": 0.25, "flaws": "three hands"}
    write_index(source, record)
    [line] = pq.read_table(source / "index.parquet").to_pylist()
    assert looks.items() <= line.items()
    assert [attempt["quality"] for attempt in line["attempts"]] == [0.5, 0.25]
    assert [attempt["negative_prompt"] for attempt in line["attempts"]] == ["", "people"]
    more["usage"] = dict(spent)
    assert {**more, "line": 1, "copy": 0, "bound_to": row["bound_to"]}.items() <= line.items()
    export(source, "imagefolder", tmp_path / "i")
    example = json.loads((tmp_path / "i" / "train" / "metadata.jsonl").read_text())
    assert {**looks, "negative_prompt": "people"}.items() <= example.items()
    export(source, "preferences", tmp_path / "p")
    [pair] = pq.read_table(tmp_path / "p" / "data" / "train-00000.parquet").to_pylist()
    assert {pair["flaws_0"], pair["flaws_1"]} == {"", "three hands"}
    assert {pair["negative_prompt_0"], pair["negative_prompt_1"]} == {"", "people"}


def _lacking(whole: Any, part: Any, path: str = "") -> list[str]:
    """The fields of a result that a row of the index does not have, or has with another value."""
    if isinstance(whole, list) and isinstance(part, list) and len(whole) == len(part):
        return [name for a, b in zip(whole, part, strict=True) for name in _lacking(a, b, f"{path}[]")]
    if not isinstance(whole, dict):
        return [path] * (whole != part)
    if not isinstance(part, dict):
        return [path]
    return [n for name, value in whole.items() for n in _lacking(value, part.get(name), f"{path}.{name}")]


def test_the_index_has_every_field_of_a_result(tmp_path: Path) -> None:
    source = make_batch(tmp_path / "out", ids=("a",))
    record = ResultsFile(source / "results.jsonl", bound_to=read_manifest(source)["bound_to"])
    [row] = record.rows(saved_jobs(source))
    spent = Usage(**{name: n for n, name in enumerate(Usage.model_fields, 1)})
    asked = Requirement(id="r1", question="?", kind="count", skill="s", words="w", weight=0.5, must=False)
    told: Any = {
        "usage": spent.model_dump(mode="json"),
        "requirements": [asked.model_dump(mode="json")],
        **{name: ["a"] for name in ("skills", "memories", "errors", "notes")},
        "run_id": "r",
        "thread": "t",
        "folder": "f",
        "score": 0.5,
        "rounds": 2,
        "seconds": 1.5,
        "at": "2026-01-01T00:00:00+00:00",
        "error": "e",
        "error_kind": "input",
        "stopped_by_total": "",
    }
    for attempt in row["attempts"]:
        attempt.update(verified=True, negative_prompt="n", quality=0.25, flaws="f")
    full: Any = {**row, **told}
    assert set(full) == set(BatchRow.__annotations__) | set(JobFields.__annotations__)
    assert set(full["usage"]) == set(UsageFields.__annotations__) == set(Usage.model_fields)
    assert set(full["attempts"][0]) == set(AttemptFields.__annotations__)
    record.add(full)
    write_index(source, record)
    [line] = pq.read_table(source / "index.parquet").to_pylist()
    for attempt in full["attempts"]:  # they are told with their questions
        attempt["verdicts"] = [{"question": "?", "answer": "yes", "confidence": 0.9}]
    assert _lacking(full, line) == []


@pytest.mark.parametrize(
    "verdicts",
    [
        {},  # another image was right, or a budget had ended
        {"r1": ["no", 0.9]},
        {"r1": ["no", 0.9], "r2": ["unsure", 0.0]},  # it got no answer
    ],
)
def test_only_images_with_all_verdicts_are_compared(verdicts: dict[str, Any], tmp_path: Path) -> None:
    """As rows of earlier versions have it, which do not say whether an image is verified."""
    source = make_batch(tmp_path / "out", ids=("a", "b"))
    record = ResultsFile(source / "results.jsonl", bound_to=read_manifest(source)["bound_to"])
    for row, others in zip(
        list(record.rows(saved_jobs(source))), (verdicts, {"r1": ["no", 0.9], "r2": ["no", 0.8]}), strict=True
    ):
        worse, better = row["attempts"]
        better.update(verdicts={"r1": ["yes", 0.9], "r2": ["yes", 0.9]})
        worse.update(score=0.0, passed=0, total=len(others), verdicts=others)
        asked = [Requirement(id=id_, question=f"{id_}?", kind="count").model_dump(mode="json") for id_ in ("r1", "r2")]
        record.add(cast(BatchRow, {**row, "requirements": asked}))
    exported = export(source, "preferences", tmp_path / "p")
    assert (exported.examples, exported.skipped, exported.unverified) == (1, 1, 1)
    [pair] = pq.read_table(tmp_path / "p" / "data" / "train-00000.parquet").to_pylist()
    assert pair["caption"] == "prompt 1"
    told = forked.gems("export", source, "--to", "preferences", "--out", tmp_path / "p", home=tmp_path / "home")
    assert "1 images left out, without a verdict on every requirement" in " ".join(told.stdout.split())
    [first, second] = pq.read_table(write_index(source, record)).to_pylist()
    assert [a["verified"] for row in (first, second) for a in row["attempts"]] == [False, True, True, True]


def test_unsolved_prompts_and_rows_without_an_image_are_skipped(tmp_path: Path) -> None:
    source = make_batch(tmp_path / "out")
    path = source / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"outcome": "rounds"}
    lines[1] = {name: lines[1][name] for name in ("index", "line", "id", "prompt", "seed", "copy", "bound_to")} | {
        "error": "no server",
        "error_kind": "backend",
    }
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for choice, counts in ((Choice(), (1, 2)), (Choice(solved=False), (2, 1))):
        exported = export(source, "webdataset", tmp_path / "w", choice)
        assert (exported.examples, exported.skipped) == counts


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("results.jsonl", '{"index": 0}\n', "results.jsonl, line 1"),
        ("prompts.jsonl", '{"index": 0}\n', "prompts.jsonl, line 1"),
        ("batch.json", "[]", "batch.json cannot be read"),
        ("batch.json", '{"id": 1, "bound_to": 2, "layout": 2}', "another version"),
        ("latest.json", '{"prices": "x"}', "latest.json is damaged"),
        ("latest.json", '{"started": "x"}', "latest.json is damaged"),
        ("begun.jsonl", '{"begin": 7}\n', "begun.jsonl, line 1"),
    ],
)
def test_every_reader_tells_a_damaged_file_in_one_line(file: str, content: str, says: str, tmp_path: Path) -> None:
    source = make_batch(tmp_path / "out")
    (source / file).write_text(content)
    commands: list[tuple[object, ...]] = [("batch", "status", source)]
    if file not in ("latest.json", "begun.jsonl"):
        commands.append(("export", source, "--to", "webdataset", "--out", tmp_path / "w"))
    for command in commands:
        result = forked.gems_here(*command, home=tmp_path / "home")
        assert result.returncode == 2
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_the_index_hands_on_no_address_of_the_results(tmp_path: Path) -> None:
    source = make_batch(tmp_path / "out")
    path = source / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    addresses = [attempt["image"] for line in lines for attempt in line["attempts"]]
    for line in lines:
        for entry in line["attempts"]:
            entry["image"] = "https://stranger.example/i.png"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = ResultsFile(path, bound_to=read_manifest(source)["bound_to"])
    table = pq.read_table(write_index(source, record)).to_pylist()
    assert [attempt["image"] for row in table for attempt in row["attempts"]] == addresses
    assert all(row["image"] in addresses for row in table)


def test_an_index_that_is_cut_off_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_batch(tmp_path / "out")
    record = ResultsFile(source / "results.jsonl", bound_to=read_manifest(source)["bound_to"])
    before = write_index(source, record).read_bytes()
    monkeypatch.setattr("gems.bulk.export._index_row", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_index(source, record)
    assert (source / "index.parquet").read_bytes() == before
    assert not [file for file in source.iterdir() if file.name.startswith(".index")]
