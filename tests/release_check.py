"""Checks that the committed state can be released: builds a wheel from a clean clone, installs it and draws an image.

usage: python tests/release_check.py [--python PYTHON] [--wheel-only]

1. Clones HEAD and builds a wheel from the clone.
2. Builds a wheel from the files that the Dockerfile copies, and compares the two.
3. Installs the first one, with the versions of constraints.txt, into an empty environment outside the checkout.
4. Draws the demo's image there, from a folder outside the project, and checks the files that the run writes.

The build and the installation (about 2 GB) need a package index. ``--wheel-only`` ends after step 2. If a check fails,
the script prints one line and exits with 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "three blue cars to the left of a striped elephant"
PNG = b"\x89PNG\r\n\x1a\n"


class FaultError(Exception):
    """A failed check; its message is one line."""


def call(command: Sequence[object], *, cwd: Path, env: Mapping[str, str] | None = None, passing: int = 0) -> str:
    """Run a command that must not fail, and return what it printed.

    Args:
        command: Program and arguments.
        cwd: The working directory.
        env: The environment of the command. By default, this process's.
        passing: The highest exit code that counts as success.
    """
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    if not 0 <= result.returncode <= passing:
        raise FaultError(
            f"{' '.join(words)} ended with {result.returncode}:\n{result.stdout[-1000:]}{result.stderr[-3000:]}"
        )
    return result.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    """Build a wheel with pip, in an isolated environment."""
    call([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source], cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, int]:
    """The files of a wheel and their checksums, except RECORD, the list of files."""
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist() if not item.filename.endswith("/RECORD")}


def is_ignored(path: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern of .dockerignore matches the path or a folder above it."""
    parts = path.split("/")
    heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    anywhere = [(pattern.removeprefix("**/"), pattern.startswith("**/")) for pattern in patterns]
    return any(
        fnmatch.fnmatchcase(part if deep else head, pattern)
        for head, part in zip(heads, parts, strict=True)
        for pattern, deep in anywhere
        if deep or "/" not in head or "/" in pattern
    )


def copy_like_docker(clone: Path, target: Path) -> None:
    """Copy the files that ``COPY . .`` of the Dockerfile copies."""
    lines = [line.strip() for line in (clone / "Dockerfile").read_text().splitlines()]
    if "COPY . ." not in lines:
        raise FaultError("the Dockerfile does not copy the whole checkout: update this check to copy the same files")
    patterns = [line for line in (clone / ".dockerignore").read_text().split() if not line.startswith("#")]
    for name in call(["git", "ls-files"], cwd=clone).splitlines():
        if not is_ignored(name, patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(clone / name, target / name)


def check_wheels(work: Path) -> Path:
    """Steps 1 and 2. Returns the wheel."""
    call(["git", "clone", "--quiet", "--no-hardlinks", ROOT, work / "clone"], cwd=work)
    folders = [work / "wheel", work / "docker-wheel"]
    for folder in (*folders, work / "docker"):
        folder.mkdir()
    wheel = build_wheel(work / "clone", folders[0])
    copy_like_docker(work / "clone", work / "docker")
    own, dockers = contents(wheel), contents(build_wheel(work / "docker", folders[1]))
    if own != dockers:
        different = sorted(name for name in own.keys() | dockers.keys() if own.get(name) != dockers.get(name))
        raise FaultError(f"the Dockerfile's files build a different wheel; these files differ: {', '.join(different)}")
    print(f"{wheel.name}: {len(own)} files, {wheel.stat().st_size >> 10:,} KB; the Dockerfile's files build the same")
    return wheel


def check_installation(work: Path, wheel: Path, python: str) -> None:
    """Steps 3 and 4."""
    started = time.monotonic()
    call([python, "-m", "venv", work / "venv"], cwd=work)
    bin_folder = work / "venv" / "bin"
    constraints = work / "clone" / "constraints.txt"
    call([bin_folder / "pip", "install", "--quiet", "-c", constraints, wheel], cwd=work)
    version = call([bin_folder / "python", "--version"], cwd=work).strip()
    print(f"installed with {version} in {time.monotonic() - started:.0f} s")

    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    base = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    env = {**base, "HOME": str(work / "home"), "GEMS_HOME": str(work / "gems-home")}
    module = Path(
        call([bin_folder / "python", "-c", "import gems; print(gems.__file__)"], cwd=elsewhere, env=env).strip()
    )
    if not module.is_relative_to(work / "venv"):
        raise FaultError(f"gems was imported from {module}, not from the wheel")
    printed = call(
        [bin_folder / "gems", "generate", PROMPT, "--seed", 4, "--out", "drawn", "--json", "--quiet"],
        cwd=elsewhere,
        env=env,
        passing=1,  # exit code 1 means best effort
    )
    record = json.loads(printed)
    folder = elsewhere / "drawn" / record["thread"]
    names = ["best.png", "report.html", "run.json", *(attempt["file"] for attempt in record["attempts"])]
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise FaultError(f"the run did not write {', '.join(absent)}")
    if any((folder / name).read_bytes()[:8] != PNG for name in names if name.endswith(".png")):
        raise FaultError("an image of the run is not a PNG file")
    if record["gems_version"] not in wheel.name:
        raise FaultError(f"the record names version {record['gems_version']}, the wheel is {wheel.name}")
    print(f"drew {PROMPT!r}: {record['outcome']}, {len(record['attempts'])} images, score {record['score']:.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that what is committed can be released.")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the empty environment")
    parser.add_argument("--wheel-only", action="store_true", help="build and compare the wheels, install nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gems-release-") as folder:
        work = Path(folder)
        try:
            wheel = check_wheels(work)
            if not options.wheel_only:
                check_installation(work, wheel, options.python)
        except FaultError as fault:
            print(f"release check failed: {fault}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
