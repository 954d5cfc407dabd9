"""Turns: one at a time of all threads and processes, in order; batches let others go first."""

import itertools
import multiprocessing
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from nnunet_plugins.label.turns import TooMany, Turns
from tests.nnunet_plugins.label.conftest import needs_monai_label
from tests.nnunet_plugins.label.test_server import infer, wait_for

STUDIES, LENGTH = 12, 0.15
"""Of a batch: how many, and seconds of each."""


def test_turns_are_one_at_a_time_in_order_and_bounded(tmp_path):
    turns, order, most = Turns(tmp_path, waiting=3), [], []
    begin = threading.Event()

    def work(number: int) -> None:
        with turns.turn() as before:
            assert before == number
            most.append(turns.state()["running"])
            order.append(number)
            begin.wait(5)

    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        while sum(turns.state().values()) <= number:
            time.sleep(0.001)
    with pytest.raises(TooMany, match="try again"), turns.turn():
        pass
    begin.set()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]
    assert set(most) == {1}
    assert turns.state() == {"running": 0, "waiting": 0}


def test_an_error_within_a_turn_ends_it(tmp_path):
    turns = Turns(tmp_path)
    for turn in (turns.turn, turns.turn_after_all) * 2:
        with pytest.raises(ValueError, match="failed"), turn():
            raise ValueError("failed")
    assert turns.state() == {"running": 0, "waiting": 0}


def batch(folder: Path, log: Path) -> None:
    """A batch of slow studies, and when it computed."""
    turns = Turns(folder)
    for _ in range(STUDIES):
        with turns.turn_after_all():
            began = time.monotonic()
            time.sleep(LENGTH)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{began} {time.monotonic()}\n")


def test_who_asks_during_a_batch_waits_for_at_most_one_of_its_studies(tmp_path):
    log, turns, rng = tmp_path / "log", Turns(tmp_path), random.Random(1)
    process = multiprocessing.get_context("spawn").Process(target=batch, args=(tmp_path, log))
    process.start()
    while not log.exists():
        time.sleep(0.01)
    asked: list[tuple[float, float, float]] = []

    def ask() -> None:
        time.sleep(rng.uniform(0, 0.3))
        begins = time.monotonic()
        with turns.turn():
            has = time.monotonic()
            time.sleep(0.02)
            asked.append((begins, has, time.monotonic()))

    for _ in range(4):
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    process.join(60)
    studies = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
    assert (process.exitcode, len(studies), len(asked)) == (0, STUDIES, 12)
    for begins, has, _ in asked:
        assert sum(begins < ended <= has for _, ended in studies) <= 1
    spans = sorted([*studies, *((has, ended) for _, has, ended in asked)])
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert any(begins < ended <= has for begins, has, _ in asked for _, ended in studies)


def test_a_killed_batch_leaves_its_turn(tmp_path):
    code = f"""
import time
from pathlib import Path
from nnunet_plugins.label.turns import Turns
with Turns(Path({str(tmp_path)!r})).turn_after_all():
    print("computing", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"computing\n"
        turns, had = Turns(tmp_path), threading.Event()

        def work() -> None:
            with turns.turn():
                had.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert not had.wait(0.3)
        assert turns.state() == {"running": 0, "waiting": 1}
        process.kill()
        assert had.wait(10)
        thread.join()


@needs_monai_label
def test_the_servers_batch_begins_no_study_while_somebody_waits(server, tmp_path):
    locks = server.studies / ".mambamed"
    made = server.studies / "labels/original"
    with FileLock(locks / "waiting.lock"):
        began = server.client.post("/batch/infer/tiny", params={"images": "all"})
        assert began.status_code == 200
        deadline = time.monotonic() + 60
        while "6 studies, each" not in str(server.client.get("/batch/infer/").json()["details"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
        assert list(made.glob("*.nii.gz")) == []
    ended = wait_for(server, "/batch/infer/")
    assert ended["status"] == "DONE", ended
    assert len(list(made.glob("*.nii.gz"))) == 6
    with FileLock(locks / "computing.lock"):
        begins = time.monotonic()
        thread = threading.Thread(target=infer, args=(server, "tiny", "study_0", tmp_path))
        thread.start()
        time.sleep(1)
        assert server.client.get("/info/").json()["queue"] == {"running": 0, "waiting": 1}
        assert not (tmp_path / "study_0.nii.gz").exists()
    thread.join(60)
    assert (tmp_path / "study_0.nii.gz").is_file()
    assert time.monotonic() - begins > 1
