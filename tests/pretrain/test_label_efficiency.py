"""The comparison of fine-tuning with training from scratch: its splits and its figures."""

import json
from dataclasses import replace
from statistics import mean

import pytest
import torch

from pretrain.export import Pretrained
from pretrain.label_efficiency import Study, Summary, Training, _record, _write_dataset

CASES = [f"case_{i:02d}" for i in range(40)]


@pytest.fixture
def study(tmp_path) -> Study:
    dataset = tmp_path / "preprocessed" / "Dataset001_Test"
    (dataset / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    splits = [{"train": CASES[:32], "val": CASES[32:]}, {"train": CASES[8:], "val": CASES[:8]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    return Study(
        "Dataset001_Test", tmp_path / "preprocessed", tmp_path / "raw", "T", validation=5
    )  # fmt: skip


def test_shares_are_nested_and_validation_is_always_the_same(study, tmp_path):
    folds = _write_dataset(study, tmp_path / "out")
    written = tmp_path / "out" / "Dataset001_Test"
    splits = json.loads((written / "splits_final.json").read_text())
    assert (written / "nnUNetPlans_3d_fullres").is_dir()
    assert len(folds) == 9
    for seed in (0, 1, 2):
        tenth, quarter, whole = (
            set(splits[folds[share, seed][0]]["train"]) for share in (10, 25, 100)
        )
        assert (len(tenth), len(quarter), len(whole)) == (3, 8, 32)
        assert tenth < quarter < whole == set(CASES[:32])
    assert all(splits[number]["val"] == CASES[32:37] for number, _ in folds.values())
    assert len({tuple(splits[folds[10, seed][0]]["train"]) for seed in (0, 1, 2)}) == 3
    original = json.loads((study.preprocessed / study.dataset / "splits_final.json").read_text())
    assert len(original) == 2  # nnU-Net's own split stays


def test_a_dataset_that_is_not_preprocessed(study, tmp_path):
    (study.preprocessed / study.dataset / "splits_final.json").unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        _record(study, weights(0), tmp_path / "out")


def weights(value: float) -> Pretrained:
    return Pretrained({"x": torch.full((2,), value)}, None, {})


def test_a_folder_is_of_one_study(study, tmp_path):
    out = tmp_path / "out"
    _record(study, weights(0), out)
    _record(replace(study, shares=(50,), seeds=(7,)), weights(0), out)  # may change
    with pytest.raises(ValueError, match="holds a study with other weights"):
        _record(study, weights(1), out)
    with pytest.raises(ValueError, match="with other trainer, validation"):
        _record(replace(study, trainer="U", validation=None), weights(0), out)


def test_folds_do_not_depend_on_what_else_is_compared(study, tmp_path):
    folds = _write_dataset(study, tmp_path / "a")
    fewer = _write_dataset(replace(study, shares=(25,), seeds=(2,)), tmp_path / "b")
    assert fewer == {(25, 2): folds[25, 2]}
    splits = [
        json.loads((tmp_path / x / study.dataset / "splits_final.json").read_text()) for x in "ab"
    ]
    number = folds[25, 2][0]
    assert splits[0][number] == splits[1][number]


def test_the_table_pairs_seeds():
    summary = Summary()
    for seed, (scratch, pretrained) in enumerate([(0.5, 0.6), (0.7, 0.8), (0.6, 0.7)]):
        summary.trainings += [
            Training("pretrained", 10, seed, 3, pretrained),
            Training("scratch", 10, seed, 3, scratch),
        ]
    assert summary.dice("scratch", 10) == [0.5, 0.7, 0.6]
    row = summary.table().splitlines()[2]
    # 95 % of Student's t with two degrees of freedom is 4.303; the deviation is 0.1
    assert row == "| 10 % | 3 | 3 | 0.600 +/- 0.248 | 0.700 +/- 0.248 | 0.100 +/- 0.000 |"
    assert mean(summary.dice("pretrained", 10)) == pytest.approx(0.7)
    assert len(summary.plot().axes[0].get_lines()) >= 2


def test_what_one_arm_lacks_is_left_out():
    summary = Summary([Training("scratch", 10, 0, 3, 0.5), Training("scratch", 25, 1, 8, 0.6)])
    assert summary.shares == []
    summary.trainings += [Training("pretrained", 25, 0, 8, 0.1), Training("scratch", 25, 0, 8, 0.4)]
    assert (summary.shares, summary.seeds(25)) == ([25], [0])
    assert summary.dice("scratch", 25) == [0.4]
    assert summary.table().count("\n") == 2
