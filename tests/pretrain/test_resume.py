"""A run that was killed or crashed ends as one that was not."""

import os
import random
import signal

import pytest
import torch

from pretrain.engine import pretrain
from tests.pretrain.runs import Interrupting, assert_same_outcome, events, outcome, wait_for
from tests.pretrain.toys import Toy, ToySamples, draw, small


@pytest.mark.parametrize(
    "settings", [{"checkpoint_minutes": 1e-9}, {"workers": 1, "accumulate": 2}]
)
def test_a_run_killed_at_random_moments_ends_the_same(tmp_path, fork, settings):
    settings = {"epochs": 8, "picture_every": 4, "save_every": 3} | settings
    pretrain(Toy(), ToySamples(), tmp_path / "whole", small(**settings), draw=draw)
    folder = tmp_path / "killed"
    checkpoint = folder / "checkpoint_last.pt"
    positions = []
    for resume in (False, True, True):
        before = checkpoint.stat().st_ino if resume else None
        process = fork(folder, settings=settings, pause=0.006, resume=resume)
        wait_for(lambda: checkpoint.exists() and checkpoint.stat().st_ino != before)  # noqa: B023
        process.join(random.uniform(0, 0.3))
        process.kill()
        process.join()
        progress = torch.load(checkpoint, weights_only=True)["progress"]
        positions.append((progress["epoch"], progress["step"]))
    assert positions == sorted(positions)
    assert positions[0] < (8, 0)
    assert positions[2] > (0, 0)
    pretrain(Toy(seed=5), ToySamples(), folder, small(**settings), resume=True, draw=draw)
    assert_same_outcome(folder, tmp_path / "whole")


def test_a_crash_between_checkpoints_leaves_no_row_twice(tmp_path):
    settings = small(epochs=5, save_every=2)
    pretrain(Toy(), ToySamples(), tmp_path / "whole", settings)
    folder = tmp_path / "crashed"
    for crash, resume, rows in ((80, False, 3), (1, True, 2)):  # the checkpoint is of epoch 2
        with pytest.raises(RuntimeError, match="power"):
            pretrain(Toy(), Interrupting(at=crash), folder, settings, resume=resume)
        assert len(outcome(folder)[0]) == rows
    pretrain(Toy(seed=5), ToySamples(), folder, settings, resume=True)
    assert_same_outcome(folder, tmp_path / "whole")
    assert [step for step, _ in events(folder, "loss")] == [1, 2, 3, 4, 5]


def test_a_folder_with_a_run_is_refused_and_left_alone(tmp_path):
    pretrain(Toy(), ToySamples(), tmp_path, small(epochs=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"already holds a run.*resume"):
        pretrain(Toy(), ToySamples(), tmp_path, small(epochs=1))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_folder_with_other_files_is_taken(tmp_path):
    (tmp_path / "slurm.out").write_text("job 1")
    pretrain(Toy(), ToySamples(), tmp_path, small(epochs=1))
    assert (tmp_path / "slurm.out").read_text() == "job 1"


def test_there_must_be_a_run_to_resume(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="no run to resume"):
            pretrain(Toy(), ToySamples(), folder, small(), resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_says_so(tmp_path, capsys):
    rows = pretrain(Toy(), ToySamples(), tmp_path, small(epochs=2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert pretrain(Toy(), ToySamples(), tmp_path, small(epochs=2), resume=True) == rows
    assert "is finished: 2 epochs are done" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    first = {"data": {"spacing": [1, 1, 2]}, "mask_ratio": 0.75}
    pretrain(Toy(), ToySamples(), tmp_path, small(epochs=1), config=first)
    second = {"data": {"spacing": [1, 1, 1]}, "mask_ratio": 0.75}
    with pytest.raises(ValueError, match="another configuration") as refusal:
        pretrain(
            Toy(), ToySamples(), tmp_path, small(epochs=2, workers=2), config=second, resume=True
        )
    text = str(refusal.value)
    assert "settings.epochs was 1, now 2" in text
    assert "run.data.spacing was [1, 1, 2], now [1, 1, 1]" in text
    assert "mask_ratio" not in text
    assert "settings.workers" not in text


def test_what_does_not_change_the_numbers_may_change(tmp_path):
    pretrain(Toy(), ToySamples(), tmp_path / "whole", small())
    with pytest.raises(KeyboardInterrupt):
        pretrain(Toy(), Interrupting(30, signal.SIGINT), tmp_path / "other", small())
    changed = small(workers=1, picture_every=1, save_every=4, checkpoint_minutes=0, device="auto")
    pretrain(Toy(), ToySamples(), tmp_path / "other", changed, resume=True, draw=draw)
    if not torch.accelerator.is_available():
        assert_same_outcome(tmp_path / "other", tmp_path / "whole")


@pytest.mark.parametrize("damage", ["half", "empty", "noise", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    pretrain(Toy(), ToySamples(), tmp_path, small(epochs=1))
    path = tmp_path / "checkpoint_last.pt"
    whole = path.read_bytes()
    damaged = {"half": whole[: len(whole) // 2], "empty": b"", "noise": os.urandom(999)}
    if damage == "other":
        torch.save([1, 2], path)
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"checkpoint_last.pt is damaged and cannot be read"):
        pretrain(Toy(), ToySamples(), tmp_path, small(epochs=1), resume=True)


def test_a_damaged_configuration_is_named(tmp_path):
    pretrain(Toy(), ToySamples(), tmp_path, small(epochs=1))
    (tmp_path / "config.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        pretrain(Toy(), ToySamples(), tmp_path, small(epochs=1), resume=True)


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(tmp_path):
    pretrain(Toy(), ToySamples(), tmp_path / "whole", small())
    pretrain(Toy(), ToySamples(), tmp_path / "early", small())
    (tmp_path / "early" / "checkpoint_last.pt").unlink()
    pretrain(Toy(), ToySamples(), tmp_path / "early", small(), resume=True)
    assert_same_outcome(tmp_path / "early", tmp_path / "whole")
