"""`python -m pretrain mambamim` and `export` as a user types them, on a few small volumes."""

import csv
import json

import pytest
import torch

from pretrain.__main__ import COMMANDS, main
from pretrain.export import read_pretrained
from tests.pretrain.test_export import plans_file

TINY = ("--patch", "16", "16", "32", "--spacing", "1", "1", "1", "--batch-size", "2")
TINY += ("--device", "cpu", "--precision", "no", "--decoder-width", "16", "--picture-every", "1")


def losses(run):
    with (run / "log.csv").open() as file:
        return [(row["epoch"], row["loss"], row["patch_mean"]) for row in csv.DictReader(file)]


def test_from_scans_to_weights_for_nnunet(scans, tmp_path, capsys):
    (scans / "broken.nii.gz").write_bytes(b"not an image")
    run = tmp_path / "run"
    assert main(["mambamim", str(scans), "--out", str(run), "--epochs", "2", *TINY]) == 0
    said = capsys.readouterr().out
    assert "4 scans, 1 left out" in said
    assert "broken.nii.gz" in said
    assert "best.safetensors" in said
    assert len(losses(run)) == 2
    assert all(abs(float(patch_mean) - 1) < 0.05 for _, _, patch_mean in losses(run))
    assert (run / "pictures" / "epoch_0002.png").stat().st_size > 1000
    data = json.loads((run / "data.json").read_text())
    assert len(data["scans"]) == 4
    plans = plans_file(tmp_path, stages=5, **isotropic())
    out = tmp_path / "nnunet.pth"
    command = ["export", str(run), "--to", "nnunet", "--plans", str(plans), "--out", str(out)]
    assert main(command) == 0
    weights = torch.load(out, weights_only=True)["network_weights"]
    pretrained = read_pretrained(run).weights
    assert all(torch.equal(weights[name], x) for name, x in pretrained.items())


def isotropic() -> dict:
    entry = {
        "patch_size": [32, 32, 32],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": {
            "arch_kwargs": {
                "strides": [[1] * 3, *[[2] * 3] * 4],
                "kernel_sizes": [[3] * 3] * 5,
            }
        },
    }
    return {"configurations": {"3d_fullres": entry}}


def test_a_run_repeats_itself_and_resumes(scans, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    command = ["mambamim", str(scans), *TINY, "--epochs", "2"]
    assert main([*command, "--out", str(whole)]) == 0
    assert main([*command, "--out", str(halves)]) == 0
    assert losses(whole) == losses(halves)
    assert main([*command, "--out", str(halves), "--resume"]) == 0  # finished: says so
    ours, theirs = read_pretrained(whole).weights, read_pretrained(halves).weights
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pretraining_on_the_stages_of_a_plan(scans, tmp_path):
    plans = plans_file(tmp_path)
    run = tmp_path / "run"
    command = ["mambamim", str(scans), "--out", str(run), "--plans", str(plans), "--epochs", "1"]
    size = ["--patch", "8", "16", "16", "--batch-size", "4", "--precision", "no"]
    assert main([*command, *size]) == 0
    assert main(["export", str(run), "--to", "nnunet", "--plans", str(plans)]) == 0
    assert (run / "nnunet.pth").exists()
    assert read_pretrained(run).metadata["preparation"]["intensity"] == {"kind": "zscore"}


def one_line(capsys, *command: str) -> str:
    assert main([*command]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"python -m pretrain {command[0]}: ")
    return said


def test_refusals(scans, tmp_path, capsys):
    empty, run = tmp_path / "empty", tmp_path / "run"
    empty.mkdir()
    out = ("--out", str(run), "--epochs", "1")
    assert "no scans" in one_line(capsys, "mambamim", str(empty), *out)
    (empty / "a.nii.gz").write_bytes(b"rubbish")
    assert "1 of 1 scans cannot be used" in one_line(capsys, "mambamim", str(empty), *out)
    large = ("--patch", "160", "160", "160")
    assert "patch" in one_line(capsys, "mambamim", str(scans), *out, *TINY, *large)
    odd = ("--patch", "24", "24", "24")
    assert "does not divide into tokens" in one_line(
        capsys, "mambamim", str(scans), *out, *TINY, *odd
    )
    configuration = ("--configuration", "2d")
    assert "give the plans" in one_line(capsys, "mambamim", str(scans), *out, *configuration)
    assert "mask_ratio is 1.5" in one_line(
        capsys, "mambamim", str(scans), *out, *TINY, "--mask-ratio", "1.5"
    )
    assert not run.exists()
    assert "no run to resume" in one_line(capsys, "mambamim", str(scans), *out, *TINY, "--resume")
    assert "leave out --spacing" in one_line(
        capsys, "mambamim", str(scans), *out, *TINY, "--plans", str(plans_file(tmp_path))
    )
    assert main(["mambamim", str(scans), *out, *TINY]) == 0
    assert "already holds a run" in one_line(capsys, "mambamim", str(scans), *out, *TINY)
    other = (*TINY, "--mask-ratio", "0.5", "--resume")
    assert "mask_ratio was 0.75, now 0.5" in one_line(capsys, "mambamim", str(scans), *out, *other)
    assert "needs --plans" in one_line(capsys, "export", str(run), "--to", "nnunet")
    plans = str(plans_file(tmp_path, stages=4))
    assert "Pretrain with --plans" in one_line(
        capsys, "export", str(run), "--to", "nnunet", "--plans", plans
    )


def test_every_command_has_help(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert "usage: python -m pretrain" in capsys.readouterr().out
