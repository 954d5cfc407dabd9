"""Jobs: one after the other, watched, cancelled, and honest about how they ended."""

import threading

import pytest

from nnunet_plugins.label.turns import TooMany
from nnunet_plugins.label.video.jobs import Job, Jobs


def job(image: str = "clip", model: str = "m", total: int = 4) -> Job:
    return Job({"model": model, "image": image}, total)


@pytest.fixture
def jobs():
    found = Jobs(waiting=3, kept=5)
    yield found
    found.close()


@pytest.fixture
def gate():
    """A job that waits in its first frame."""
    opened, entered = threading.Event(), threading.Event()

    def work(job):
        entered.set()
        opened.wait(10)
        for _ in range(job.total):
            job.advance(1)
        job.result = {"found": 1}

    work.opened, work.entered = opened, entered
    yield work
    opened.set()


def ended(*jobs: Job) -> list[str]:
    for found in jobs:
        for _ in range(1000):
            if found.ended:
                break
            threading.Event().wait(0.01)
    return [found.status for found in jobs]


def test_jobs_are_done_one_after_the_other(jobs, gate):
    first = jobs.begin(job(), gate)
    second = jobs.begin(job("other"), gate)
    assert gate.entered.wait(10)
    assert (first.status, second.status) == ("RUNNING", "WAITING")
    gate.opened.set()
    assert ended(first, second) == ["DONE", "DONE"]
    told = jobs.get(first.id).told()
    assert (told["frames_done"], told["frames_total"], told["found"]) == (4, 4, 1)
    assert [one.id for one in jobs.all()] == [first.id, second.id]


def test_a_cancelled_job_ends_between_frames_and_before_it_begins(jobs, gate):
    first, second = jobs.begin(job(), gate), jobs.begin(job("other"), gate)
    assert gate.entered.wait(10)
    first.cancelled.set()
    second.cancelled.set()
    gate.opened.set()
    assert ended(first, second) == ["CANCELED", "CANCELED"]
    assert (first.done, second.done) == (1, 0)


def test_the_same_twice_and_too_many_are_refused(jobs, gate):
    jobs.begin(job(), gate)
    with pytest.raises(FileExistsError, match="m and clip are at work already"):
        jobs.begin(job(), gate)
    jobs.begin(job("a"), gate)
    jobs.begin(job(model="n"), gate)
    with pytest.raises(TooMany):
        jobs.begin(job("c"), gate)


def test_failures_are_told_and_the_next_job_runs(jobs):
    def fails(job):
        raise ValueError("the frame is damaged")

    def breaks(job):
        raise KeyError("secret")

    one, two = jobs.begin(job(), fails), jobs.begin(job("b"), breaks)
    assert ended(one, two) == ["ERROR", "ERROR"]
    assert one.told()["detail"] == "the frame is damaged"
    assert "secret" not in two.told()["detail"]
    assert "KeyError" in two.told()["detail"]
    assert ended(jobs.begin(job(), lambda job: None)) == ["DONE"]


def test_only_the_newest_are_remembered(jobs):
    made = [jobs.begin(job(str(i)), lambda job: None) for i in range(3)]
    ended(*made)
    for i in range(8):
        made.append(jobs.begin(job(f"x{i}"), lambda job: None))
        ended(made[-1])
    assert len(jobs.all()) <= 6
    with pytest.raises(FileNotFoundError, match="no job"):
        jobs.get(made[0].id)
