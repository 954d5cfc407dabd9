"""A disk without room costs a file, not the run; only the last checkpoint must be written."""

import errno
import os

import pytest
import torch

from pretrain.engine import pretrain
from pretrain.run_folder import whole_file
from tests.pretrain.toys import Toy, ToySamples, draw, small


def fill(monkeypatch, is_full, error=None):
    """Let writes fail whenever `is_full` says so of their path."""
    replace = os.replace

    def fail_or_replace(source, target):
        if is_full(str(target)):
            raise error or OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_or_replace)


@pytest.mark.parametrize("error", [None, RuntimeError("PytorchStreamWriter failed writing file")])
def test_training_goes_on_without_room_and_says_so(tmp_path, monkeypatch, capsys, error):
    whole = pretrain(Toy(), ToySamples(), tmp_path / "a", small(), draw=draw)
    samples = ToySamples()
    fill(
        monkeypatch, lambda path: samples.epoch == 1 and (not error or "checkpoint" in path), error
    )
    rows = pretrain(Toy(), samples, tmp_path / "b", small(), draw=draw)
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole]
    output = capsys.readouterr().out
    assert "could not write the checkpoint" in output
    assert "training goes on" in output
    assert not list((tmp_path / "b").rglob("*.partial"))
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    state = torch.load(tmp_path / "b" / "checkpoint_last.pt", weights_only=True)
    assert state["progress"]["epoch"] == 4


def test_the_last_checkpoint_must_be_written(tmp_path, monkeypatch):
    samples = ToySamples()
    fill(monkeypatch, lambda path: samples.epoch == 3 and path.endswith("checkpoint_last.pt"))
    with pytest.raises(OSError, match="No space left"):
        pretrain(Toy(), samples, tmp_path, small())
    monkeypatch.undo()
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert state["progress"]["epoch"] == 3
    rows = pretrain(Toy(), ToySamples(), tmp_path, small(), resume=True)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_a_disk_that_is_full_at_the_start_is_told_at_the_start(tmp_path, monkeypatch):
    samples = ToySamples()
    fill(monkeypatch, lambda path: True)
    with pytest.raises(OSError, match="No space left"):
        pretrain(Toy(), samples, tmp_path, small())
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(TypeError), whole_file(path) as file:  # noqa: PT012, two writes
        file.write(b"half")
        file.write(None)
    assert path.read_bytes() == b"before"
    with whole_file(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]
