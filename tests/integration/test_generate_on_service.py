"""``gems generate --service``: a run of a service looks as one of this machine does, and takes nothing with it."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from forked import gems, gems_here, gems_process
from PIL import Image
from servers.gems_service import ServiceProcess, serving, write_keys
from servers.waiting import wait_until
from shared_servers import marks

pytestmark = marks("service")

PROMPT = "two red cars behind a dog"


def shown(text: str) -> str:
    """What a command has printed, without what differs from run to run: names, paths, times."""
    text = re.sub(r"^(run|loading) .*\n|^run-\w+ at .*\n|^ +(image|record|report): .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\d+\.\d s of work", "s of work", text)


def test_it_prints_what_a_local_run_prints(service: ServiceProcess, tmp_path: Path) -> None:
    options = ("generate", PROMPT, "--seed", 7, "--no-memory", "--max-rounds", 1)
    local = gems(*options, "--out", tmp_path / "local", home=tmp_path / "home")
    remote = gems_here(*options, "--service", service.url, "--out", tmp_path / "remote", home=tmp_path / "none")
    assert remote.returncode == local.returncode, remote.stderr
    assert shown(remote.stdout) == shown(local.stdout)
    Path("/tmp/me/rem.txt").write_text(shown(remote.stderr))
    Path("/tmp/me/loc.txt").write_text(shown(local.stderr))
    assert shown(remote.stderr) == shown(local.stderr)
    [best], [same] = ((tmp_path / place).glob("*/best.png") for place in ("local", "remote"))
    with Image.open(best) as image, Image.open(same) as copy:
        assert image == copy
    assert "&lt;html" in (same.parent / "report.html").read_text()
    assert not (tmp_path / "none").exists(), "nothing is kept in the home folder"


def test_its_json_has_the_names_of_a_record(service: ServiceProcess, tmp_path: Path) -> None:
    options = ("generate", PROMPT, "--seed", 7, "--no-memory", "--max-rounds", 1, "--json", "--quiet")
    local = json.loads(gems(*options, "--out", tmp_path / "local", home=tmp_path / "home").stdout)
    result = gems_here(*options, "--service", service.url, "--out", tmp_path / "remote", home=tmp_path)
    remote = json.loads(result.stdout)
    assert result.stderr == ""
    assert remote.keys() <= local.keys()
    for name in ("prompt", "outcome", "score", "best", "seed", "skills", "errors"):
        assert remote[name] == local[name], name
    assert Path(remote["paths"]["image"]).is_file()
    assert remote["paths"].keys() == local["paths"].keys()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--generator", "pocket-large"], "leave --generator out"),
        (["--memory", "here"], "leave --memory out"),
        (["--user", "ann"], "leave --user out"),
        (["--price", "image=1"], "leave --price out"),
        (["--max-rounds", "0"], "--max-rounds 0"),
    ],
    ids=str,
)
def test_what_belongs_to_the_operator_is_refused(
    options: list[str], says: str, service: ServiceProcess, tmp_path: Path
) -> None:
    result = gems_here("generate", PROMPT, "--service", service.url, *options, home=tmp_path)
    assert (result.returncode, says in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    ("url", "code", "says"),
    [
        ("http://127.0.0.1:9", 3, "does not answer"),
        ("ftp://example.org", 2, "takes the address of a gems serve"),
        ("http://ann:secret@127.0.0.1", 2, "takes the address of a gems serve"),
    ],
)
def test_an_address_without_a_service_is_told(url: str, code: int, says: str, tmp_path: Path) -> None:
    result = gems_here("generate", PROMPT, "--service", url, "--out", tmp_path, home=tmp_path)
    assert (result.returncode, says in result.stderr) == (code, True), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_used_is_told_before_the_service_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = gems_here(
        "generate", PROMPT, "--service", "http://127.0.0.1:9", "--out", tmp_path / "file" / "out", home=tmp_path
    )
    assert (result.returncode, "cannot write to" in result.stderr) == (2, True), result.stderr


def test_another_server_is_no_service(chat_server: str, tmp_path: Path) -> None:
    result = gems_here("generate", PROMPT, "--service", chat_server, "--out", tmp_path, home=tmp_path)
    assert result.returncode in (2, 3), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_bad_input_of_the_service_is_bad_input_here(service: ServiceProcess, tmp_path: Path) -> None:
    result = gems_here("generate", "two red catz", "--service", service.url, "--out", tmp_path, home=tmp_path)
    assert (result.returncode, "unknown word 'catz'" in result.stderr) == (2, True), result.stderr


def test_a_key_comes_from_the_environment(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.toml", ann="")
    options = ("--no-memory", "--grace", "0", "--keys", str(tmp_path / "keys.toml"))
    with serving(tmp_path / "service", *options) as service:
        command = ("generate", PROMPT, "--service", service.url, "--out", tmp_path / "out", "--max-rounds", 1)
        without = gems_here(*command, home=tmp_path)
        assert (without.returncode, "GEMS_API_KEY" in without.stderr) == (2, True), without.stderr
        key = keys["ann"]
        assert gems_here(*command, home=tmp_path, GEMS_API_KEY=key).returncode in (0, 1)


def test_ctrl_c_cancels_a_run_that_has_not_begun(tmp_path: Path) -> None:
    work = {"prompt": "seven red cars behind seven blue dogs", "settings": {"candidates": 8, "max_rounds": 3}}
    options = ("--no-memory", "--grace", "0", "--concurrency", "1")
    with serving(tmp_path / "service", *options) as service, service.client() as client:
        for _ in range(2):
            client.post("/v1/runs", json=work).raise_for_status()
        command = ("generate", "two red cars", "--service", service.url, "--out", tmp_path, "--json")
        with gems_process(*command, home=tmp_path) as process:
            assert process.stderr is not None
            process.stderr.readline()
            os.kill(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        record = json.loads(output)
        assert (process.returncode, record["outcome"], record["best"]) == (130, "cancelled", None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_the_run_on_the_service(number: signal.Signals, service: ServiceProcess, tmp_path: Path) -> None:
    pace = ("--candidates", 8, "--max-rounds", 2)
    command = ("generate", "seven red cars behind seven blue dogs", "--service", service.url, "--out", tmp_path, *pace)
    with gems_process(*command, home=tmp_path) as process:
        assert process.stderr is not None
        run = process.stderr.readline().split()[0]
        os.kill(process.pid, number)
        process.communicate(timeout=60)
    with service.client() as client:
        ended = ("cancelled", "done")
        view = wait_until(
            lambda: v if (v := client.get(f"/v1/runs/{run}").json())["status"] in ended else None, lambda: "it goes on"
        )
    assert (process.returncode, view["outcome"]) == (130, "cancelled")
