"""Bulk runs: limits of the whole run, dry runs, status, stopping, kills and exports."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pyarrow.parquet as pq
import pytest
from chatting import serving
from PIL import Image
from recording_server import recorded_requests
from servers.waiting import wait_until

from gems.evals.prompts import fresh_prompts

SLOW = pytest.mark.slow
QUICK = ("--no-plan", "--no-skills")


def uses_finished_batch(test: Any) -> Any:
    """Mark a test that uses ``finished``, a batch that runs once per session."""
    return SLOW(pytest.mark.xdist_group("bulk")(test))


def prompts(path: Path, n: int, seed: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [p.prompt for p in fresh_prompts(n, seed)]
    path.write_text("".join(json.dumps({"id": f"w{i}", "prompt": text}) + "\n" for i, text in enumerate(texts)))
    return path


def run(*args: object, home: Path, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    result = forked.gems(*args, home=home)
    assert result.returncode in ok, result.stderr
    return result


def refusal_of(*args: object, home: Path) -> str:
    """The error message for bad input."""
    result = forked.gems_here(*args, home=home)
    assert result.returncode == 2, result.stderr
    return result.stderr


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def index(out: Path) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(out / "index.parquet").to_pylist()
    return table


@pytest.fixture
def painter() -> Iterator[str]:
    """An image server that takes half a second per image and logs its requests."""
    with serving("image_server.py") as address:
        yield address


def requested_images(painter: str) -> Counter[str]:
    with urllib.request.urlopen(f"{painter}/log") as answer:
        requests = json.load(answer)["seen"]
    return Counter(json.dumps([entry["request"]["prompt"], entry["request"]["seed"]]) for entry in requests)


def wait_for(out: Path, lines: int, process: forked.Process) -> None:
    results = out / "results.jsonl"

    def line_count() -> int:
        count = results.read_bytes().count(b"\n") if results.exists() else 0
        assert process.poll() is None, f"the batch has ended with {count} results"
        return count

    wait_until(lambda: line_count() >= lines, lambda: f"{lines} results were not written", seconds=120)


# --- limits and forecasts --------------------------------------------------------------------------------------------


@SLOW
def test_a_total_ends_the_run_and_the_rest_is_listed(tmp_path: Path) -> None:
    file, out = prompts(tmp_path / "p.jsonl", 8), tmp_path / "out"
    command = ("batch", file, "--out", out, *QUICK, "--max-rounds", 2, "--price", "image=0.5", "--json")
    command += ("--concurrency", 3)
    result = run(*command, "--total-cost", 2, home=tmp_path / "home", ok=(4,))
    summary = json.loads(result.stdout)
    assert summary["limit_reached"] == "cost"
    assert summary["cost"] == 2
    assert summary["finished"] + summary["cut_short"] + summary["not_started"] == 8
    assert f"{summary['not_started']} prompts were not started" in result.stderr
    left = [json.loads(line) for line in (out / "not_started.jsonl").read_text().splitlines()]
    assert len(left) == summary["not_started"]
    assert {row["index"] for row in rows(out)}.isdisjoint(row["index"] for row in left)

    # The list is itself a prompt file, with seeds and ids.
    elsewhere = run(
        "batch", out / "not_started.jsonl", "--out", tmp_path / "rest", *QUICK, "--json", home=tmp_path / "home"
    )
    assert json.loads(elsewhere.stdout)["finished"] == len(left)
    assert {(r["prompt"], r["seed"], r["id"]) for r in rows(tmp_path / "rest")} == {
        (r["prompt"], r["seed"], r["id"]) for r in left
    }

    # If the limit is already used up, no prompt starts; without a limit, the rest runs.
    again = run(*command, "--total-cost", 2, home=tmp_path / "home", ok=(4,))
    assert json.loads(again.stdout)["images"] == summary["images"]
    finished = run(*command, home=tmp_path / "home")
    assert json.loads(finished.stdout)["finished"] == 8
    assert not (out / "not_started.jsonl").exists()
    assert sorted(row["index"] for row in index(out)) == list(range(8))


def test_a_price_limit_without_prices_is_refused(tmp_path: Path) -> None:
    file = prompts(tmp_path / "p.jsonl", 2)
    for options, says in ((("--total-cost", 1), "--price"), (("--price", "picture=1"), "picture")):
        assert says in refusal_of("batch", file, "--out", tmp_path / "out", *options, home=tmp_path / "home")


@SLOW
def test_the_estimate_of_a_dry_run_covers_the_actual_cost(tmp_path: Path) -> None:
    file, out = prompts(tmp_path / "p.jsonl", 14), tmp_path / "out"
    command = ("batch", file, "--out", out, "--max-rounds", 2, *QUICK, "--price", "image=0.1", "--json")
    command += ("--concurrency", 3)
    dry = json.loads(run(*command, "--dry-run", "--sample", 9, home=tmp_path / "home").stdout)
    assert (dry["sample"], dry["prompts"]) == (9, 14)
    sample = (out / "results.jsonl").read_bytes()
    assert sample.count(b"\n") == 9
    status = run("batch", "status", out, home=tmp_path / "home").stdout
    assert "9 of 14 prompts done" in status
    actual = json.loads(run(*command, home=tmp_path / "home").stdout)
    assert (out / "results.jsonl").read_bytes().startswith(sample)
    for name in ("images", "tokens", "cost"):
        assert dry["estimate"][name]["low"] <= actual[name] <= dry["estimate"][name]["high"]
    assert dry["estimate"]["hours"]["low"] > 0


@SLOW
def test_the_same_prompt_and_seed_twice_are_drawn_twice(tmp_path: Path) -> None:
    file, out = tmp_path / "p.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps({"prompt": "a cat", "seed": 1, "id": i}) + "\n" for i in range(6)))
    run("batch", file, "--out", out, *QUICK, "--max-rounds", 1, home=tmp_path / "home")
    finished_rows = rows(out)
    assert sorted(row["id"] for row in finished_rows) == [str(i) for i in range(6)]
    assert len({row["attempts"][0]["sha256"] for row in finished_rows}) == 1


# --- watching and stopping -------------------------------------------------------------------------------------------


@SLOW
def test_status_works_while_a_batch_runs_and_no_second_process_may_run_it(painter: str, tmp_path: Path) -> None:
    file, out, home = prompts(tmp_path / "p.jsonl", 90), tmp_path / "out", tmp_path / "home"
    command = ("batch", file, "--out", out, *QUICK, "--max-rounds", 1, "--generator", f"{painter}/slow/draw")
    with forked.gems_process(*command, "--concurrency", 2, home=home) as process:
        wait_for(out, 3, process)
        status = json.loads(run("batch", "status", out, "--json", home=home).stdout)
        assert status["state"] == "running"
        assert status["pid"] == process.pid
        assert 3 <= status["done"] < 90
        in_flight = status["spent"]["images"] - status["done"]
        assert 0 <= in_flight <= 2, "each of the two prompts in flight may have drawn its image"
        assert status["prompts_a_minute"] > 0
        assert status["seconds_left"] > 0
        assert "another process works on" in refusal_of(*command, home=home)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    status = json.loads(run("batch", "status", out, "--json", home=home).stdout)
    assert (status["state"], status["done"], status["pid"]) == ("stopped", len(rows(out)), None)
    assert "holds no batch" in refusal_of("batch", "status", tmp_path, home=home)


@SLOW
def test_ctrl_c_once_finishes_what_is_in_flight(painter: str, tmp_path: Path) -> None:
    file, out, home = prompts(tmp_path / "p.jsonl", 20), tmp_path / "out", tmp_path / "home"
    command = ("batch", file, "--out", out, *QUICK, "--max-rounds", 2, "--generator", f"{painter}/slow/draw")
    with forked.gems_process(*command, "--concurrency", 3, home=home) as process:
        wait_for(out, 3, process)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finishing the prompts in flight" in messages
    finished_rows = rows(out)
    assert 3 <= len(finished_rows) < 20
    # Every prompt that started has finished: each image that was requested is in a result.
    assert sum(requested_images(painter).values()) == sum(row["usage"]["images"] for row in finished_rows)
    assert len(index(out)) == len(finished_rows)
    state = json.loads(run("batch", "status", out, "--json", home=home).stdout)["state"]
    assert state == "stopped"


@SLOW
def test_ctrl_c_twice_stops_at_the_next_step_and_no_image_is_drawn_twice(painter: str, tmp_path: Path) -> None:
    file, out, home = prompts(tmp_path / "p.jsonl", 8), tmp_path / "out", tmp_path / "home"
    command = ("batch", file, "--out", out, *QUICK, "--max-rounds", 4, "--generator", f"{painter}/slow/draw")
    with forked.gems_process(*command, "--concurrency", 4, home=home) as process:
        assert process.stderr is not None
        wait_until(lambda: requested_images(painter), lambda: "no image was requested")
        process.send_signal(signal.SIGINT)
        assert any("finishing the prompts in flight" in line for line in process.stderr)
        wait_until(lambda: len(requested_images(painter)) > 4, lambda: "the second round did not begin")
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping prompts after their current step" in messages
    assert not (out / "results.jsonl").exists()  # each would have taken four rounds
    run(*command, "--concurrency", 4, home=home)
    assert max(requested_images(painter).values()) == 1
    assert sum(row["usage"]["images"] for row in rows(out)) == sum(requested_images(painter).values())


@SLOW
def test_after_random_kills_every_prompt_has_one_result(painter: str, tmp_path: Path) -> None:
    """Only images that were in flight during a kill are requested again."""
    file, out, home = prompts(tmp_path / "p.jsonl", 30), tmp_path / "out", tmp_path / "home"
    command = ("batch", file, "--out", out, *QUICK, "--max-rounds", 2, "--generator", f"{painter}/slow/draw")
    rng, in_flight = random.Random(5), 6
    for lines in (4, 13):
        with forked.gems_process(*command, "--concurrency", in_flight, home=home) as process:
            wait_for(out, lines, process)
            time.sleep(rng.uniform(0, 0.6))  # any moment within the half second that an image takes
            process.kill()
    run(*command, "--concurrency", in_flight, home=home)
    counted = Counter(row["index"] for row in index(out))
    assert counted == Counter(range(30))
    assert Counter(row["index"] for row in rows(out)) == counted
    requests = requested_images(painter)
    assert len(requests) == sum(row["usage"]["images"] for row in rows(out))
    assert sum(requests.values()) - len(requests) <= 2 * in_flight


# --- results and exports ---------------------------------------------------------------------------------------------


FINISHED = 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch in which some prompts took several rounds."""
    folder = tmp_path_factory.mktemp("finished")
    file = folder / "p.jsonl"
    prompts(file, FINISHED)
    file.write_text(file.read_text() + '{"prompt": "a blue dragon", "id": "cannot"}\n')
    run("batch", file, "--out", folder / "out", "--max-rounds", 3, home=folder / "home", ok=(2,))
    return folder / "out"


@uses_finished_batch
def test_the_index_holds_every_prompt_with_its_attempts(finished: Path) -> None:
    table = index(finished)
    by_index = {row["index"]: row for row in rows(finished)}
    assert [row["index"] for row in table] == list(range(FINISHED + 1))
    for row in table:
        result_row = by_index[row["index"]]
        assert (row["prompt"], row["seed"], row["id"]) == (result_row["prompt"], result_row["seed"], result_row["id"])
        if row["error"]:
            assert (row["id"], row["image"], row["attempts"]) == ("cannot", None, [])
            continue
        best = row["attempts"][row["best"]]
        assert row["sha256"] == best["sha256"] == result_row["attempts"][result_row["best"]]["sha256"]
        assert hashlib.sha256(Path(row["image"].removeprefix("file://")).read_bytes()).hexdigest() == row["sha256"]
        assert row["solved"] == all(v["answer"] == "yes" for v in best["verdicts"]) == (row["outcome"] == "solved")
        assert len(row["attempts"]) == row["usage"]["images"]


# webdataset does not close its files; the garbage collector does.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@uses_finished_batch
def test_webdataset_reads_the_shards(finished: Path, tmp_path: Path) -> None:
    import webdataset

    export_result = run(
        "export", finished, "--to", "webdataset", "--out", tmp_path / "w", "--json", home=tmp_path / "home"
    )
    by_index = {row["index"]: row for row in rows(finished)}
    solved = {i for i, row in by_index.items() if row.get("outcome") == "solved"}
    shards = sorted(map(str, (tmp_path / "w").glob("*.tar")))
    raw = {int(s["__key__"]): s for s in webdataset.WebDataset(shards, shardshuffle=False)}
    assert json.loads(export_result.stdout) == {
        "folder": str(tmp_path / "w"),
        "examples": len(solved),
        "skipped": FINISHED + 1 - len(solved),
        "unverified": 0,
    }
    assert raw.keys() == solved
    for i in random.Random(1).sample(sorted(solved), 5):
        best = by_index[i]["attempts"][by_index[i]["best"]]
        assert hashlib.sha256(raw[i]["png"]).hexdigest() == best["sha256"]
        assert raw[i]["txt"].decode() == by_index[i]["prompt"]
        about = json.loads(raw[i]["json"])
        assert about["sha256"] == best["sha256"]
        assert {v["answer"] for v in about["verdicts"]} == {"yes"}
    decoded = next(iter(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "txt", "json")))
    assert decoded[0].size == (512, 512)


@uses_finished_batch
def test_datasets_reads_the_image_folder(finished: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    run("export", finished, "--to", "imagefolder", "--out", tmp_path / "i", "--all", home=tmp_path / "home")
    loaded = load_dataset("imagefolder", data_dir=str(tmp_path / "i"), cache_dir=str(tmp_path / "cache"), split="train")
    by_index = {row["index"]: row for row in rows(finished)}
    assert sorted(loaded["index"]) == list(range(FINISHED))  # all but the prompt that cannot be drawn
    for example in random.Random(1).sample(list(loaded), 5):
        row = by_index[example["index"]]
        best = row["attempts"][row["best"]]
        assert example["text"] == row["prompt"]
        assert example["solved"] == (row["outcome"] == "solved")
        with Image.open(best["image"].removeprefix("file://")) as image:
            assert example["image"].convert("RGB").tobytes() == image.convert("RGB").tobytes()
        assert example["sha256"] == best["sha256"]


def read_as_a_trainer(folder: Path, cache: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield (caption, preferred, rejected) as Diffusion-DPO trainers read Pick-a-Pic.

    They load the columns jpg_0, jpg_1, label_0 and caption, put the preferred image first, and decode the bytes.
    """
    from datasets import load_dataset

    for example in load_dataset(str(folder), cache_dir=str(cache), split="train"):
        pair = [example["jpg_0"], example["jpg_1"]]
        if example["label_0"] == 0:
            pair.reverse()
        for data in pair:
            assert Image.open(io.BytesIO(data)).convert("RGB").size == (512, 512)
        yield example["caption"], pair[0], pair[1]


@uses_finished_batch
def test_a_dpo_trainer_reads_the_preference_pairs(finished: Path, tmp_path: Path) -> None:
    run("export", finished, "--to", "preferences", "--out", tmp_path / "d", "--pairs", 2, home=tmp_path / "home")
    attempts = {
        (row["prompt"], attempt["sha256"]): attempt for row in rows(finished) for attempt in row.get("attempts", [])
    }
    read = list(read_as_a_trainer(tmp_path / "d", tmp_path / "cache"))
    expected = [r for r in rows(finished) if len({a["passed"] for a in r.get("attempts", [])}) > 1]
    assert {caption for caption, _, _ in read} <= {row["prompt"] for row in expected}
    assert len(read) >= len(expected) // 2 > 0
    for caption, preferred, rejected in read:
        better = attempts[caption, hashlib.sha256(preferred).hexdigest()]
        worse = attempts[caption, hashlib.sha256(rejected).hexdigest()]
        assert better["passed"] > worse["passed"]
        assert better["score"] - worse["score"] >= 0.1
    raw = pq.read_table(tmp_path / "d" / "data" / "train-00000.parquet").to_pylist()
    assert {row["label_0"] + row["label_1"] for row in raw} == {1}
    assert len({row["label_0"] for row in raw}) == 2  # the position does not reveal the preferred image
    assert all(row["verdicts_0"] and row["verdicts_1"] for row in raw)


@uses_finished_batch
def test_a_moved_folder_can_be_exported(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "moved")
    path = tmp_path / "moved" / "results.jsonl"
    path.write_text(path.read_text().replace("file://", "file:///nowhere"))
    run("export", tmp_path / "moved", "--to", "webdataset", "--out", tmp_path / "w", home=tmp_path / "home")


@uses_finished_batch
def test_an_export_opens_no_address_of_the_results(finished: Path, tmp_path: Path) -> None:
    moved, images = tmp_path / "my results", tmp_path / "my images 100%25 #1"
    shutil.copytree(finished, moved)
    (moved / "images").rename(images)
    with recorded_requests(b"no image") as (host, requested):
        path = moved / "results.jsonl"
        path.write_text(path.read_text().replace("file://", f"http://{host}"))
        arguments = ("export", moved, "--to", "webdataset", "--out", tmp_path / "data set")
        result = run(*arguments, home=tmp_path / "home", ok=(3,))
        assert "--images" in result.stderr
        assert f"http://{host}" in result.stderr
        run(*arguments, "--images", images, home=tmp_path / "home")
    assert requested == []


@uses_finished_batch
def test_an_export_never_overwrites_other_files(finished: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    result = run("export", finished, "--to", "webdataset", "--out", mine, home=tmp_path / "home", ok=(2,))
    assert "no export" in result.stderr
    assert (mine / "thesis.txt").read_text() == "years of work"
    target = tmp_path / "again"
    run("export", finished, "--to", "webdataset", "--out", target, home=tmp_path / "home")
    run("export", finished, "--to", "imagefolder", "--out", target, home=tmp_path / "home")
    assert not list(target.glob("*.tar"))
    result = run("export", finished, "--to", "tfrecord", "--out", target, home=tmp_path / "home", ok=(2,))
    assert "webdataset, imagefolder, preferences" in result.stderr
    assert list((target / "train").glob("*.png"))


@uses_finished_batch
def test_an_export_reports_a_damaged_image(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "torn")
    solved = next(row for row in rows(finished) if row.get("outcome") == "solved")
    digest = solved["attempts"][solved["best"]]["sha256"]
    image = tmp_path / "torn" / "images" / digest[:2] / f"{digest}.png"
    image.write_bytes(image.read_bytes()[:-20])
    result = run(
        "export", tmp_path / "torn", "--to", "webdataset", "--out", tmp_path / "w", home=tmp_path / "h", ok=(3,)
    )
    assert "is damaged" in result.stderr
    assert not (tmp_path / "w").exists()
