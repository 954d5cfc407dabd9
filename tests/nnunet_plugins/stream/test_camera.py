"""`mambamed stream CAMERA` with a camera that is there: a server that sends H.264 over TCP, goes
away, comes back and falls silent."""

import json
import os
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from nnunet_plugins.stream import sources
from tests.nnunet_plugins.stream.conftest import frames_of, pictures, write_clip
from tests.nnunet_plugins.stream.test_command import stream


class Server:
    """Sends a film to those who connect, one after the other.

    Args:
        film: What is sent.
        silent: For each connection, whether it stays open afterwards. Further ones are refused.
    """

    def __init__(self, film: bytes, silent: list[bool]) -> None:
        self.film, self.silent, self.served = film, silent, 0
        self.over = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(20)
        self.address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        held = []
        for silent in self.silent:
            connection, _ = self.listener.accept()
            self.served += 1
            if self.served == len(self.silent):
                self.listener.close()
            connection.sendall(self.film)
            held.append(connection) if silent else connection.close()
        self.over.wait(20)
        for connection in held:
            connection.close()


@pytest.fixture
def camera(tmp_path, monkeypatch):
    """Makes a server; cameras are asked again soon, and count as gone soon."""
    monkeypatch.setattr(sources, "Camera", partial(sources.Camera, waits=(0.05, 0.1)))
    monkeypatch.setattr(sources, "TIMEOUT", 1.0)
    film = write_clip(tmp_path / "film.ts", pictures(60), format="mpegts").read_bytes()
    servers: list[Server] = []

    def make(*silent: bool) -> Server:
        servers.append(Server(film, list(silent)))
        return servers[-1]

    yield make
    for server in servers:
        server.over.set()
        server.thread.join(5)


def test_a_camera_that_goes_for_good_is_retried_said_and_what_came_kept(
    camera, bundle, tmp_path, capsys
):
    server = camera(False, True)
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    assert stream(server.address, bundle, out=out, json=report) == 1
    assert server.served == 2
    error = capsys.readouterr().err
    assert f"{server.address} is gone (it sends no more); trying again in 0.05 s" in error
    assert "; trying again in 0.1 s" in error
    assert f"{server.address} did not come back (Connection refused); connect it and" in error
    figures = json.loads(report.read_text())
    assert len(figures["notes"]) == error.count("trying again") >= 3
    assert figures["arrived"] > 60  # of both times
    assert figures["frames"] + figures["dropped"] + figures["corrupt"] == figures["arrived"]
    assert len(frames_of(out)) == figures["frames"] == figures["next_index"] > 0


def test_ctrl_c_ends_the_wait_for_a_silent_camera(camera, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT", 30.0)
    server = camera(True)
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    pressed = []

    def press(path: Path) -> None:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, args=(out,), daemon=True).start()
    assert stream(server.address, bundle, out=out, json=report) == 130
    assert time.monotonic() - pressed[0] < 10
    assert len(frames_of(out)) == json.loads(report.read_text())["frames"] > 0


def test_a_camera_that_is_not_there_is_refused_at_once(camera, bundle, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert stream(f"tcp://127.0.0.1:{port}", bundle, out=tmp_path / "out.mp4") == 1
    assert "cannot be opened: Connection refused; check that it is" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()
