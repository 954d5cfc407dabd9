"""Stages of the demo: run once, skipped when done, resumed when interrupted, clear on failure."""

import json
import os
import sys
from pathlib import Path

import pytest

from nnunet_plugins.cli import main
from nnunet_plugins.demo.pipeline import Experiment, Stage, _run_stage, _train


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    return Experiment(
        tmp_path / "raw/Dataset005_X", tmp_path, "HyMambaTrainer_small_7epochs", "cpu"
    )


def python(tmp_path: Path, code: str, steps: int = 0) -> Stage:
    """A stage that runs a line of Python and makes a file called product."""
    return Stage(
        "Test", [sys.executable, "-c", code], tmp_path / "product", tmp_path / "logs/test.log",
        r"step", steps,
    )  # fmt: skip


def test_a_finished_stage_is_not_run_again(experiment, tmp_path, capsys):
    stage = python(
        tmp_path, f"open({str(tmp_path / 'product')!r}, 'a').write('x'); print('step')", 1
    )
    seconds = _run_stage(stage, experiment)
    assert _run_stage(stage, experiment) == seconds > 0
    assert stage.product.read_text() == "x"
    assert "done before" in capsys.readouterr().out
    assert stage.log.read_text() == "step\n"


def test_a_stage_whose_product_was_removed_runs_again(experiment, tmp_path):
    stage = python(tmp_path, f"open({str(tmp_path / 'product')!r}, 'a').write('x')")
    _run_stage(stage, experiment)
    stage.product.unlink()
    _run_stage(stage, experiment)
    assert stage.product.exists()


def test_a_failure_quotes_the_end_of_the_log_and_is_tried_again(experiment, tmp_path):
    stage = python(tmp_path, "raise SystemExit('no such organ')")
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"test failed; the end of .*test\.log:\n.*no such organ"
        ):
            _run_stage(stage, experiment)
    assert json.loads(stage.log.with_suffix(".json").read_text())["done"] is False


def test_a_training_with_a_checkpoint_continues(experiment):
    assert "--c" not in _train(experiment).command
    assert _train(experiment).steps == 7
    experiment.fold.mkdir(parents=True)
    (experiment.fold / "checkpoint_latest.pth").touch()
    assert _train(experiment).command[-1] == "--c"


def test_commands_get_nnunets_paths_and_no_variable_of_ours(experiment, tmp_path):
    environment = experiment.environment()
    assert environment["nnUNet_raw"] == str(tmp_path / "raw")
    added = {name for name, value in environment.items() if os.environ.get(name) != value}
    assert not [name for name in added if "mambamed" in name.lower()]


def test_a_folder_that_is_no_dataset_is_refused_in_one_line(tmp_path, capsys):
    assert main(["demo", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip()
    assert "is no nnU-Net raw dataset: its name must be DatasetXXX_Name" in error
    assert "\n" not in error
