"""API keys: each user's own runs, images and memory, and daily limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers.gems_service import ServiceProcess, serving, write_keys
from shared_servers import needs
from typer.testing import CliRunner

from gems.cli.main import app as cli
from gems.errors import InputError
from gems.serve.keys import Keys
from gems.serve.links import Links
from gems.serve.settings import ServiceSettings
from gems.serve.web_app import make_app


@dataclass
class Shared:
    served: ServiceProcess
    keys: dict[str, str]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    base = tmp_path_factory.mktemp("keys")
    keys = write_keys(base / "keys.toml", ann="", bob="", poor="{ images = 2 }", batch="{ images = 6 }")
    with serving(base / "home", "--keys", str(base / "keys.toml"), "--host", "127.0.0.1", "--grace", "0") as served:
        yield Shared(served, keys)


def run(shared: Shared, name: str, prompt: str, **settings: Any) -> Any:
    with shared.served.client(shared.keys[name]) as client:
        answer = client.post("/v1/runs", json={"prompt": prompt, "settings": settings})
        assert answer.status_code == 202, answer.text
        return shared.served.wait_for(answer.json()["id"], key=shared.keys[name])


@needs("service_keys")
def test_without_a_key_every_request_is_refused(shared: Shared) -> None:
    with shared.served.client() as client:
        for method, path in (
            ("GET", "/v1/runs"),
            ("POST", "/v1/runs"),
            ("GET", "/v1/runs/run-x/events"),
            ("POST", "/v1/images/generations"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("POST", "/gems/invoke"),
            ("POST", "/gems/c/x/stream"),
            ("GET", "/gems/playground/"),
        ):
            answer = client.request(method, path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/page.js", "/healthz", "/readyz", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        wrong = client.get("/v1/runs", headers={"authorization": "Bearer gems-wrong"})
        assert wrong.status_code == 401
        other_header = client.get("/v1/runs", headers={"x-api-key": shared.keys["ann"]})
        assert other_header.status_code == 200


@needs("service_keys")
def test_users_do_not_see_each_others_runs(shared: Shared) -> None:
    view = run(shared, "ann", "two red cars", seed=3)
    assert view["status"] == "done"
    with shared.served.client(shared.keys["bob"]) as bob:
        assert bob.get("/v1/runs").json()["data"] == []
        assert bob.get(f"/v1/runs/{view['id']}").status_code == 404
        assert bob.get(f"/v1/runs/{view['id']}/events").status_code == 404
        assert bob.post(f"/v1/runs/{view['id']}/cancel").status_code == 404
        assert bob.post(f"/v1/runs/{view['id']}/review", json={"action": "accept"}).status_code == 404
        resume = {"input": {"thread_id": view["thread"], "resume": {"action": "accept"}}}
        assert bob.post("/gems/invoke", json=resume).status_code == 400
    # The image's URL is signed, so a browser can load it without a key. A changed URL is refused.
    url = shared.served.url + view["image"]["url"]
    assert httpx.get(url).status_code == 200
    assert httpx.get(url.replace(".png", "A.png")).status_code == 404
    assert httpx.get(f"{shared.served.url}/artifacts/{view['image']['sha256']}.png").status_code == 404
    assert httpx.get(shared.served.url + view["report"].replace("/reports/", "/artifacts/")).status_code == 404


@needs("service_keys")
def test_each_user_has_a_separate_memory(shared: Shared) -> None:
    run(shared, "ann", "four green dogs", seed=3)
    assert run(shared, "bob", "four green dogs", seed=3)["memories"] == 0
    assert run(shared, "ann", "four green dogs", seed=3)["memories"] >= 1


@needs("service_keys")
def test_a_day_costs_no_more_than_its_limit(shared: Shared) -> None:
    image_count = 0
    with shared.served.client(shared.keys["poor"]) as client:
        for _ in range(4):
            body = {"prompt": "seven wooden koalas chasing a sparkling giraffe", "settings": {"memory": False}}
            answer = client.post("/v1/runs", json=body)
            if answer.status_code == 429:
                break
            view = shared.served.wait_for(answer.json()["id"], key=shared.keys["poor"])
            image_count += view["usage"]["images"]
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "insufficient_quota"
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
        assert image_count == 2
        image = client.post("/v1/images/generations", json={"prompt": "a red dog"})
        assert image.status_code == 429
    assert run(shared, "ann", "a red dog")["status"] == "done", "other users are not blocked"


@needs("service_keys")
@pytest.mark.parametrize("route", ["/gems/batch", "/v1/images/generations"])
def test_several_runs_that_the_day_does_not_allow_leave_nothing_behind(shared: Shared, route: str) -> None:
    """Each run needs an image, and the key has six a day."""
    numbers = ("one", "two", "three", "four", "five", "six", "seven")
    body = {"inputs": [{"prompt": f"{n} wooden koalas chasing a giraffe"} for n in numbers]}
    body = body if route == "/gems/batch" else {"prompt": "six wooden koalas chasing a giraffe", "n": 7}
    with shared.served.client(shared.keys["batch"]) as client:
        answer = client.post(route, json=body)
        assert answer.status_code == 429, answer.text
        assert client.get("/v1/runs").json()["data"] == []


@needs("service_keys")
def test_a_batch_begins_all_its_runs(shared: Shared) -> None:
    with shared.served.client(shared.keys["ann"]) as client:
        prompts = ["two green dogs", "a red dog"]
        answer = client.post("/gems/batch", json={"inputs": [{"prompt": prompt} for prompt in prompts]})
        assert [run["prompt"] for run in answer.json()["output"]] == prompts
        before = {run["id"] for run in client.get("/v1/runs").json()["data"]}
        bad = {"inputs": [{"prompt": "a red dog"}, {"thread_id": "none", "resume": {"action": "accept"}}]}
        assert client.post("/gems/batch", json=bad).status_code == 400
        assert (
            client.post("/gems/batch", json={"inputs": [{"prompt": "a red dog"}, {"prompt": " "}]}).status_code == 400
        )
        assert {run["id"] for run in client.get("/v1/runs").json()["data"]} == before
        assert client.post("/gems/batch", json={"inputs": []}).json()["output"] == []


@needs("service_keys")
def test_users_do_not_delete_each_others_runs(shared: Shared) -> None:
    view = run(shared, "ann", "two red cars", seed=5)
    with shared.served.client(shared.keys["bob"]) as bob:
        assert bob.delete(f"/v1/runs/{view['id']}").status_code == 404
    with shared.served.client(shared.keys["ann"]) as ann:
        assert ann.get(f"/v1/runs/{view['id']}").status_code == 200


def test_a_limit_on_cost_needs_prices(tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.toml", ann="{ cost = 2.5 }")
    with pytest.raises(InputError, match="limits the cost of a day for ann, and there are no prices"):
        make_app(ServiceSettings(home=tmp_path, keys=tmp_path / "keys.toml"))


def test_a_key_is_printed_once_and_its_entry_works(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["new-key", "ann"])
    assert result.exit_code == 0
    key = result.stderr.split()[-1]
    assert key not in result.stdout
    (tmp_path / "keys.toml").write_text(result.stdout + "daily = { images = 5 }\n")
    client = Keys(tmp_path / "keys.toml").client(key)
    assert client is not None
    assert (client.name, client.daily.images) == ("ann", 5)
    assert Keys(tmp_path / "keys.toml").client(key + "x") is None
    assert CliRunner().invoke(cli, ["new-key", "../ann"]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no key"),
        ("[ann]\n", "ann.sha256"),
        ('[ann]\nsha256 = "abc"\n', "ann.sha256"),
        (f'[Ann]\nsha256 = "{"0" * 64}"\n', "not a valid user's name"),
        (f'[ann]\nsha256 = "{"0" * 64}"\ndaily = {{ imagse = 1 }}\n', "imagse"),
        ("[ann", "cannot read"),
    ],
)
def test_a_file_of_keys_that_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        Keys(tmp_path / "keys.toml")


@pytest.mark.parametrize("secret", ["", "\n", "short"])
def test_a_secret_that_anybody_could_guess_is_refused(tmp_path: Path, secret: str) -> None:
    (tmp_path / "secret").write_text(secret)
    with pytest.raises(InputError, match="delete the file") as caught:
        Links(tmp_path / "secret", 3600)
    assert "\n" not in str(caught.value)
    (tmp_path / "secret").unlink()
    Links(tmp_path / "secret", 3600)


def test_processes_that_start_at_once_share_a_secret(tmp_path: Path) -> None:
    for attempt in range(20):
        file, together = tmp_path / str(attempt) / "secret", threading.Barrier(4)

        def sign(file: Path, together: threading.Barrier) -> str:
            together.wait()
            return Links(file, 3600).image("ann", "0" * 64).removeprefix("/artifacts/").removesuffix(".png")

        with ThreadPoolExecutor(4) as pool:
            tokens = [made.result() for made in [pool.submit(sign, file, together) for _ in range(4)]]
        assert all(Links(file, 3600).read("artifacts", token) for token in tokens)
        assert [path.name for path in file.parent.iterdir()] == ["secret"], "no draft is left"
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_for_the_metrics_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["new-key", "prometheus", "--metrics"])
    (tmp_path / "keys.toml").write_text(result.stdout)
    client = Keys(tmp_path / "keys.toml").client(result.stderr.split()[-1])
    assert client is not None
    assert client.metrics


def test_addresses_expire_and_outlive_a_restart(tmp_path: Path) -> None:
    links = Links(tmp_path / "secret", 3600)
    token = links.image("ann", "0" * 64).removeprefix("/artifacts/").removesuffix(".png")
    assert Links(tmp_path / "secret", 3600).read("artifacts", token) == ("ann", "0" * 64)
    assert Links(tmp_path / "secret", -1).read("artifacts", token) is None
    assert Links(tmp_path / "other", 3600).read("artifacts", token) is None
    assert links.read("reports", token) is None
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0
