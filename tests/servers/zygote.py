"""A fork server for Python commands: it imports the heavy libraries once, then forks a process per command.

A cold ``python -m gems`` spends eight CPU-seconds on importing torch, diffusers and LangChain. A fork of a process that
has imported them spends less than one, and still has its own pid, signals, streams and exit code. The server imports
the modules of ``gems`` that most commands use, too: they read no settings when they are imported but the names of the
default models, and a command that wants others gets an interpreter of its own. It loads the models that come with the
package. The workers of xdist are forked from it as well (``conftest.py``).

usage: zygote.py SOCKET        The server ends when its standard input is closed.

A client (see ``forked.py``) connects to SOCKET and sends one JSON request and three file descriptors. It receives the
pid of the command at once and the wait status at the end, each on its own line.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
import types
import warnings
import weakref
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "torch",
    "diffusers.guiders",
    "diffusers.pipelines.auto_pipeline",
    "transformers.models.align",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert_fast",
    "langgraph.graph",
    "langgraph.checkpoint.postgres",
    "langgraph.checkpoint.sqlite",
    "langgraph.checkpoint.memory",
    "langgraph.prebuilt",
    "langgraph.pregel.remote",
    "langgraph.store.postgres",
    "psycopg_pool",
    "langchain_core.messages.block_translators.langchain_v0",
    "langchain_core.runnables.graph_mermaid",
    "langchain_core.tracers.run_collector",
    "langchain_core.tracers.stdout",
    "langchain.agents",
    "langchain.chat_models",
    "langchain.embeddings",
    "langchain_openai",
    "openai.resources.chat",
    "faiss",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.ImageFont",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "PIL.WebPImagePlugin",
    "resvg_py",
    "anyio._backends._asyncio",
    "httpx",
    "httpx_sse",
    "hypothesis",
    "jinja2",
    "pandas",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "skills_ref",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "rapidocr",
    "rapidfuzz",
    "s3fs",
    "fsspec.implementations.chained",
    "fsspec.implementations.local",
    "platformdirs",
    "typer.rich_utils",
    "rich._emoji_codes",
    "rich.progress",
    "rich.table",
    "yaml",
    "psutil",
    "filelock",
    "fastapi",
    "uvicorn.config",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
    "langserve",
    "structlog",
    "prometheus_client",
    "itsdangerous",
    "httptools",
    "uvicorn.protocols.http.httptools_impl",
    "ray",
    "ray.dag",  # what Ray imports when a process ends
    "ray.data",
    "ray.exceptions",
    "ray.util.scheduling_strategies",
)
"""Libraries that commands and tests import. If one is missing from this list, what needs it only becomes slower."""

MODULES = (
    "gems.cli.main",
    "gems.cli.arguments",
    "gems.bulk.batch",
    "gems.bulk.export",
    "gems.bulk.faults",
    "gems.bulk.latest",
    "gems.bulk.ray_driver",
    "gems.bulk.watching",
    "gems.cli.doctor",
    "gems.cli.live",
    "gems.evals.evaluate",
    "gems.graph.builder",
    "gems.learning.learn",
    "gems.memory.opening",
    "gems.memory.embedder",
    "gems.memory.live_index",
    "gems.memory.store",
    "gems.memory.transfer",
    "gems.models.diffusers.backend",
    "gems.models.pocket.chat",
    "gems.models.ocr",
    "gems.models.pocket.light",
    "gems.models.pocket.pipeline",
    "gems.models.servers.openai_chat",
    "gems.models.servers.openai_images",
    "gems.runs.folder",
    "gems.models.transformers.chat",
    "gems.runs.replay",
    "gems.runs.report",
    "gems.runs.sessions",
    "gems.serve.server",
    "gems.serve.web_app",
    "gems.skills.loader",
)
"""Modules of the package that most commands import, likewise."""

_DEFAULT_MODELS = {name: os.environ.get(name, "") for name in ("GEMS_MLLM", "GEMS_GENERATOR")}


class Server:
    """Accepts requests, forks, and reports how each child ended. Only a forked child returns from ``next_command``."""

    def __init__(self, path: str) -> None:
        self._children: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{path}.new")
        self._listener.listen(64)
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        for source in (0, self._listener, self._woken):
            self._selector.register(source, selectors.EVENT_READ)
        Path(f"{path}.new").rename(path)  # rename last: clients see the socket only once it accepts connections

    def next_command(self) -> dict[str, Any]:
        """Serve until a child has been forked, and return its request in the child."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    sys.exit(0)
                if key.fileobj == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                    self._report_ended_children()
                elif (request := self._accept()) is not None:
                    return request

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        while data and not data.endswith(b"\n"):
            part = connection.recv(1 << 20)
            data = data + part if part else b""
        if not data:  # the client disconnected before it sent a request
            for descriptor in descriptors:
                os.close(descriptor)
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._become_child(connection)
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            for descriptor in descriptors:
                os.close(descriptor)
            request: dict[str, Any] = json.loads(data)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        self._children[pid] = connection
        with contextlib.suppress(OSError):  # the client may be gone; the child runs anyway
            connection.sendall(f"{pid}\n".encode())
        return None

    def _become_child(self, connection: socket.socket) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for other in (self._listener, connection, *self._children.values()):
            other.close()
        os.close(self._woken)
        os.close(self._waker)

    def _report_ended_children(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._children.pop(pid)
            with contextlib.suppress(OSError):
                connection.sendall(f"{status}\n".encode())
            connection.close()


def open_streams(environment: dict[str, str]) -> None:
    """Open the standard streams as a fresh interpreter with this environment would."""
    encoding, _, errors = environment.get("PYTHONIOENCODING", "utf-8").partition(":")
    encoding = encoding or "utf-8"
    sys.stdin = open(0, encoding=encoding, errors=errors or "strict", closefd=False)  # noqa: SIM115
    out = open(1, "wb", closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(out, encoding, errors or "strict", line_buffering=os.isatty(1))
    err = open(2, "wb", closefd=False)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(err, encoding, "backslashreplace", line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def read_strictness_again(environment: dict[str, str]) -> None:
    """Set what LangGraph read from a variable when it was imported."""
    if strictness := environment.get("LANGGRAPH_STRICT_MSGPACK"):
        for name in ("langgraph.checkpoint.serde._msgpack", "langgraph._internal._serde"):
            vars(sys.modules[name])["STRICT_MSGPACK_ENABLED"] = strictness == "true"


def read_default_models_again(request: dict[str, Any]) -> None:
    """Become a fresh interpreter if the environment names other default models than those that were imported."""
    if any(request["env"].get(name, "") != _DEFAULT_MODELS[name] for name in _DEFAULT_MODELS):
        os.execve(sys.executable, [sys.executable, *request["arguments"]], request["env"])


def execute(request: dict[str, Any]) -> None:
    """Do what ``python [-u] [-W FILTER ...] ARGUMENTS`` does, for ``-m MODULE``, ``-c CODE`` and a script's path."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    read_default_models_again(request)
    sys.path[1:1] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part not in ("", *sys.path)]
    open_streams(request["env"])
    read_strictness_again(request["env"])
    kind, *rest = request["arguments"]
    while kind in ("-u", "-W"):
        if kind == "-W":
            warnings._setoption(rest.pop(0))  # type: ignore[attr-defined]
        kind, *rest = rest
    if kind == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.path[0] = str(Path(kind).resolve().parent)
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def run_to_the_end(request: dict[str, Any]) -> NoReturn:
    """Execute and exit like an interpreter, but skip the teardown of modules, which takes a second with torch."""
    code: object = 0
    try:
        execute(request)
    except SystemExit as leaving:
        code = leaving.code
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    with contextlib.suppress(BrokenPipeError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code or 0)


def build_the_command_line_once() -> None:
    """Typer builds all commands from their functions' signatures whenever one is run. They never change."""
    import typer.main
    import typer.testing

    build_once = functools.cache(typer.main.get_command)
    typer.main.get_command = typer.testing._get_command = build_once


def import_libraries() -> None:
    for library in (*LIBRARIES, *MODULES):
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    with contextlib.suppress(ImportError):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("bert")  # compiles a thousand regular expressions, once


def fill_caches() -> None:
    """Do once what most commands do: a fork has what libraries and the package loaded, compiled and cached then."""
    from typer.testing import CliRunner

    from gems.cli.main import app
    from gems.memory.embedder import init_embedder
    from gems.models.local_weights import load_now
    from gems.models.pocket.vision import pretrained
    from gems.models.registry import init_image_generator
    from gems.runs.report import _template

    init_embedder().embed_query("two red cars")
    load_now(init_image_generator("pocket"))
    pretrained()
    _template()
    with tempfile.TemporaryDirectory(prefix="gems-warm-up-") as folder:
        # Without a memory: a process opens its memory once.
        words = ["generate", "two red cars", "--no-memory", "--out", f"{folder}/out"]
        CliRunner().invoke(app, words, env={**os.environ, "GEMS_HOME": f"{folder}/home", "XDG_CONFIG_HOME": folder})


def forget_teardown() -> None:
    """Spare each command what the libraries tear down at its end: torch alone would touch 40 MB of shared pages."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False


def main() -> None:
    address = Path(sys.argv[1])
    # A fork of a process in which OpenMP has begun threads waits for them for ever.
    os.environ["OMP_NUM_THREADS"] = "1"
    import_libraries()
    build_the_command_line_once()
    fill_caches()
    forget_teardown()
    server = Server(str(address))
    gc.collect()
    gc.freeze()  # otherwise the garbage collector of a child would touch, and so copy, every page
    run_to_the_end(server.next_command())


if __name__ == "__main__":
    main()
