"""Promotion: one of several at once, of the candidate that was seen, whole when it is killed."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from nnunet_plugins.label.shelf import NewerCandidate, Shelf, digest
from tests.nnunet_plugins.label.test_models import value_of, weights_of

OLDER, OLD, NEW, NEWER = 0.0, 1.0, 2.0, 3.0


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    """Serves OLD, was promoted once, and has NEW as a candidate."""
    torch.save(weights_of(OLDER), tmp_path / "shipped.pt")
    made = Shelf(tmp_path / "tiny", tmp_path / "shipped.pt")
    made.put_candidate(weights_of(OLD), {"verdict": "old"})
    made.promote(digest(made.candidate))
    made.put_candidate(weights_of(NEW), {"verdict": "new"})
    return made


def again(shelf: Shelf) -> Shelf:
    """As another process sees it."""
    return Shelf(shelf.folder, shelf.shipped)


def test_of_simultaneous_promotions_one_succeeds(shelf):
    count, seen = 12, digest(shelf.candidate)
    together = Barrier(count)

    def promote(_: int) -> str:
        together.wait()
        try:
            return again(shelf).promote(seen)["verdict"]
        except FileNotFoundError as error:
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        said = list(pool.map(promote, range(count)))
    assert said.count("new") == 1
    assert set(said) - {"new"} == {"tiny has no candidate; train it first, then promote"}
    assert (value_of(shelf.served), value_of(shelf.previous)) == (NEW, OLD)
    shelf.restore()
    assert value_of(shelf.served) == OLD


def test_of_simultaneous_restorations_one_succeeds(shelf):
    shelf.promote(digest(shelf.candidate))
    count = 8
    together = Barrier(count)

    def restore(_: int) -> str:
        together.wait()
        try:
            return str(again(shelf).restore())
        except FileNotFoundError as error:
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        said = list(pool.map(restore, range(count)))
    assert said.count("None") == 1
    assert set(said) - {"None"} == {"tiny has no weights from before a promotion"}
    assert value_of(shelf.served) == OLD


def test_a_candidate_that_nobody_saw_is_not_promoted(shelf):
    seen = digest(shelf.candidate)
    shelf.put_candidate(weights_of(NEWER), {"verdict": "newer"})
    with pytest.raises(NewerCandidate, match="tiny is not the one you saw"):
        shelf.promote(seen)
    assert value_of(shelf.served) == OLD
    assert shelf.model_report()["verdict"] == "old"
    assert shelf.promote(digest(shelf.candidate))["verdict"] == "newer"


class Killed(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("steps", range(3))
def test_a_killed_promotion_leaves_old_or_new_whole(shelf, monkeypatch, steps):
    """It ends before the weights of before are kept, before the candidate moves, or its report."""
    seen, replace, left = digest(shelf.candidate), os.replace, [steps]

    def until_killed(source: Path, target: Path) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", until_killed)
        with pytest.raises(Killed):
            shelf.promote(seen)
    after = again(shelf)
    if steps < 2:
        assert (value_of(after.served), after.model_report()["verdict"]) == (OLD, "old")
        assert after.promote(seen)["verdict"] == "new"
    with pytest.raises(FileNotFoundError, match="no candidate"):
        again(shelf).promote(seen)
    assert (value_of(after.served), after.model_report()["verdict"]) == (NEW, "new")
    assert value_of(after.previous) == OLD
    after.put_candidate(weights_of(NEWER), {"verdict": "newer"})
    assert after.model_report()["verdict"] == "new"
    assert after.promote(digest(after.candidate))["verdict"] == "newer"
    after.restore()
    assert value_of(after.served) == NEW


def test_a_promotion_that_was_killed_late_is_restored(shelf, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(shelf, "_settle", lambda: None)
        shelf.promote(digest(shelf.candidate))
    after = again(shelf)
    assert after.model_report()["verdict"] == "new"
    after.restore()
    assert value_of(after.served) == OLD
    assert after.model_report() is None
    assert after.candidate_report() is None
