"""Images in an object store: moto's S3 server in another process, the command line, the pocket models."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from PIL import Image
from servers.waiting import listening_port

from gems.errors import BackendError, InputError
from gems.graph.state import ImageRef
from gems.memory.image_store import ImageStore

pytest.importorskip("s3fs")
pytest.importorskip("moto")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("s3")]

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "s3-canary-91c4",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as file, forked.Process(command, stdout=file, stderr=file) as process:
        try:
            yield f"http://127.0.0.1:{listening_port(process, log.read_text)}"
        finally:
            process.kill()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket; its credentials are in the environment."""
    import s3fs

    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(endpoint_url=server).mkdir(name)
    return name


def generate(home: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return forked.gems("generate", "a blue car", "--out", home / "out", *args, home=home, COLUMNS="300", **env)


def test_a_run_keeps_its_images_in_a_bucket_and_the_next_machine_finds_them(bucket: str, tmp_path: Path) -> None:
    result = generate(tmp_path, "--images", f"s3://{bucket}/gems", "--reuse", "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    image = ImageRef.model_validate(record["attempts"][record["best"]]["image"])
    assert image.uri == f"s3://{bucket}/gems/{image.sha256[:2]}/{image.sha256}.png"
    assert not (tmp_path / "images").exists()
    stored = ImageStore(f"s3://{bucket}/gems").find(image.sha256)
    assert stored == image
    assert (stored.width, stored.height) == (512, 512)
    out = next((tmp_path / "out").iterdir())
    assert (out / "best.png").stat().st_size > 1000
    again = generate(tmp_path, "--reuse", "--json", GEMS_IMAGES=f"s3://{bucket}/gems")
    assert json.loads(again.stdout)["attempts"][0]["image"] == image.model_dump(mode="json")
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"s3-canary" not in file.read_bytes(), file


def test_the_same_image_is_one_object_and_can_be_removed(bucket: str) -> None:
    store, image = ImageStore(f"s3://{bucket}"), Image.new("RGB", (8, 8), "red")
    first, second = store.put(image, {"a": "b"}), store.put(image, {"a": "b"})
    assert first == second
    assert len(store._fs.find(bucket)) == 1
    assert store.remove(first)
    with pytest.raises(BackendError, match="cannot be read"):
        store.read(first)


def test_errors_are_one_line(bucket: str, tmp_path: Path) -> None:
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    closed = generate(tmp_path, "--images", f"s3://{bucket}", "-q", **nowhere)
    assert closed.returncode in (2, 3)
    assert f"s3://{bucket}" in closed.stderr
    assert "Traceback" not in closed.stderr
    assert "s3-canary" not in closed.stderr
    with pytest.raises(InputError, match="cannot keep images in nothing://x"):
        ImageStore("nothing://x")


def test_a_missing_bucket_is_not_created(bucket: str, tmp_path: Path) -> None:
    import s3fs

    result = generate(tmp_path, "--images", f"s3://{bucket}-typo/gems", "-q")
    assert (result.returncode, len(result.stderr.strip().splitlines())) == (2, 1), result.stderr
    assert f"s3://{bucket}-typo/gems" in result.stderr
    assert not s3fs.S3FileSystem(skip_instance_cache=True).exists(f"{bucket}-typo")
