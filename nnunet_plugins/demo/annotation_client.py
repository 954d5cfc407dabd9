"""The annotation server in a process of its own, and a small client of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from nnunet_plugins.label.tokens import new_token

PATIENCE = 600
"""Seconds that the server may take to start, to answer, or to train."""
GOODBYE = 30
"""Seconds that it may take to end."""


class Client:
    """What a viewer or script asks of the server.

    Args:
        address: `http://host:port`.
        token: The server's.
    """

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands before the loopback interface
        self._session.headers["Authorization"] = f"Bearer {token}"

    def labels(self, model: str) -> dict[str, int]:
        """Names and values of what a model segments."""
        return self._ask("GET", "/info/").json()["models"][model]["labels"]

    def next_study(self, model: str) -> str:
        """The open study that a model is least sure of."""
        return self._ask("POST", "/activelearning/uncertainty", json={"model": model}).json()["id"]

    def infer(self, model: str, study: str, out: Path) -> Path:
        """Labels of a study, in a file."""
        query = {"image": study, "output": "image"}
        out.write_bytes(self._ask("POST", f"/infer/{model}", params=query).content)
        return out

    def put_label(self, study: str, file: Path) -> None:
        """Give a study its final label."""
        with file.open("rb") as stream:
            self._ask(
                "PUT", "/datastore/label", params={"image": study, "tag": "final"},
                files={"label": (file.name, stream)},
            )  # fmt: skip

    def train(
        self, model: str, options: dict[str, Any], say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Train to a candidate, wait for it, and give the server's report.

        Raises:
            RuntimeError: If it fails or takes too long.
        """
        self._ask("POST", f"/train/{model}", json=options)
        began = told = time.monotonic()
        while (job := self._ask("GET", "/train/").json())["status"] in ("SUBMITTED", "RUNNING"):
            now = time.monotonic()
            if now - began > PATIENCE:
                self._ask("DELETE", "/train/")
                raise RuntimeError(f"the training round took more than {PATIENCE} seconds")
            if now - told > 15:
                say(f"   training, {now - began:.0f} s")
                told = now
            time.sleep(0.5)
        if job["status"] != "DONE":
            raise RuntimeError("the training round failed: " + "\n".join(job["details"][-15:]))
        return self._ask("GET", f"/candidate/{model}").json()

    def promote(self, model: str, candidate: str) -> None:
        """Serve a candidate from now on, by the `weights` of its report."""
        self._ask("POST", f"/promote/{model}", params={"candidate": candidate})

    def _ask(self, method: str, path: str, **content: Any) -> requests.Response:
        answer = self._session.request(method, self.address + path, timeout=PATIENCE, **content)
        if not answer.ok:
            raise RuntimeError(f"the server refused {method} {path}: {answer.text[:1000]}")
        return answer


@contextlib.contextmanager
def running_server(studies: Path, bundle: Path, log: Path) -> Iterator[Client]:
    """`mambamed label` on a free port of 127.0.0.1, which ends with the context.

    Args:
        studies: Folder of studies.
        bundle: What it serves.
        log: What it prints; the token lies beside it for as long.

    Raises:
        RuntimeError: If it does not start; quotes the end of its log.
    """
    token, secret = new_token(), log.with_name(".token")
    secret.touch(mode=0o600)
    secret.write_text(token)
    command = [
        str(Path(sys.executable).parent / "mambamed"), "label", "--studies", str(studies),
        "--bundles", str(bundle), "--port", "0", "--token-file", str(secret),
    ]  # fmt: skip
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        yield Client(_address(process, log), token)
    finally:
        _end(process)
        secret.unlink()


def _address(process: subprocess.Popen, log: Path) -> str:
    """Where it listens, once it says that it is ready."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        said = log.read_text(encoding="utf-8")
        found = re.search(r"Address +(http://127\.0\.0\.1:\d+)/[\s\S]*Ctrl-C", said)
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.2)
    tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
    raise RuntimeError(f"the server did not start; the end of {log}:\n{tail}")


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(GOODBYE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
