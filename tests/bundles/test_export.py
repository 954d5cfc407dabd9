"""A results folder becomes a bundle that predicts what nnU-Net predicts, or one clear sentence."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_plugins.bundle.export import export_bundle, network_definition
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.cli import main


def predict_with_nnunet(
    results: Path, images: Path, out: Path, folds: tuple, tta: bool, gaussian: bool = True
) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_gaussian=gaussian, use_mirroring=tta, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(results), folds)
    out.mkdir()
    predictor.predict_from_files_sequential(str(images), str(out))


def assert_same(expected: Path, found: Path) -> None:
    """Same voxels, same geometry, and something to see."""
    files = sorted(expected.glob("*.nii.gz"))
    assert files
    assert [f.name for f in files] == [f.name for f in sorted(found.glob("*.nii.gz"))]
    for file in files:
        ours, theirs = (sitk.ReadImage(str(folder / file.name)) for folder in (found, expected))
        a, b = sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs)
        assert len(np.unique(b)) > 1
        assert (a == b).mean() >= 0.999
        assert a.dtype == b.dtype
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(ours, geometry)() == getattr(theirs, geometry)()


@pytest.mark.parametrize(
    ("trainer", "tta"),
    [
        ("HyMambaTrainer_small_1epochs_hilbert", True),
        ("HyMambaTrainer_small_1epochs_hilbert", False),
        ("nnUNetTrainer", True),
    ],
    ids=["ours mirrored", "ours", "stock mirrored"],
)
def test_bundle_and_nnunet_predict_the_same(
    make_results, images, run_bundle, tmp_path, monkeypatch, trainer, tta
):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    results = make_results(trainer)
    bundle = export_bundle(results, tmp_path / "bundle")
    predict_with_nnunet(results, images, tmp_path / "expected", (0,), tta)
    options = {} if tta else {"mirror_axes": []}
    said = run_bundle(
        bundle / "configs/inference.json", bundle_root=bundle, dataset_dir=images,
        output_dir=tmp_path / "found", **options,
    )  # fmt: skip
    assert said == ""
    assert_same(tmp_path / "expected", tmp_path / "found")


def test_folds_are_averaged_as_nnunet_does(make_results, images, run_bundle, tmp_path):
    results = make_results(folds=(0, 2))
    bundle = export_bundle(results, tmp_path / "bundle")
    predict_with_nnunet(results, images, tmp_path / "expected", (0, 2), False)
    run_bundle(
        bundle / "configs/inference.json", bundle_root=bundle, dataset_dir=images,
        output_dir=tmp_path / "found", mirror_axes=[],
    )  # fmt: skip
    assert_same(tmp_path / "expected", tmp_path / "found")
    single = export_bundle(results, tmp_path / "single", folds=[2])
    weights = torch.load(single / "models/model.pt", weights_only=True)
    both = torch.load(bundle / "models/model.pt", weights_only=True)
    assert len(both) == 2 * len(weights)
    assert all(torch.equal(both[f"members.1.{name}"], w) for name, w in weights.items())


def test_options_of_the_trainers_name_reach_the_network(make_results):
    results = make_results("HyMambaTrainer_small_1epochs_zigzag_unidirectional")
    plan = Plan(results, "3d_fullres")
    definition = network_definition("HyMambaTrainer_small_1epochs_zigzag_unidirectional", plan)
    assert definition["_target_"] == "nnunet_plugins.networks.hymamba.HyMamba"
    assert definition["scan_order"] == "zigzag"
    assert definition["bidirectional"] is False
    assert list(definition["features_per_stage"]) == [16, 16, 32]
    assert definition["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def test_metadata_says_what_was_trained(make_results, tmp_path):
    bundle = export_bundle(make_results(channels=2), tmp_path / "bundle")
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert image["channel_def"] == {"0": "T1", "1": "T2"}
    assert image["spatial_shape"] == [8, 16, 16]
    assert pred["channel_def"] == {"0": "background", "1": "shell", "2": "core"}
    assert "HyMambaTrainer_small_1epochs" in metadata["description"]
    inference = json.loads((bundle / "configs/inference.json").read_text())
    assert inference["mirror_axes"] == [1, 2]
    assert inference["network_def"]["input_channels"] == 2


def test_the_command_exports_into_a_folder_named_after_the_data(
    make_results, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    results = make_results()
    assert main(["export-bundle", "--results", str(results), "--fold", "0"]) == 0
    assert "monai.bundle run" in capsys.readouterr().out
    (bundle,) = tmp_path.glob("*_segmentation")
    assert "Apache License" in (bundle / "LICENSE").read_text()
    assert main(["export-bundle", "--results", str(results), "--out", str(bundle)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    (bundle / "old").touch()
    again = ["export-bundle", "--results", str(results), "--out", str(bundle), "--overwrite"]
    assert main(again) == 0
    assert not (bundle / "old").exists()


def test_only_bundles_are_overwritten(make_results, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").touch()
    with pytest.raises(FileExistsError, match="no bundle"):
        export_bundle(make_results(), tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter.tex").exists()


def other_plans(results: Path) -> None:
    plans = json.loads((results / "plans.json").read_text())
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for name in ("strides", "kernel_sizes"):
        kwargs[name] = kwargs[name][:2]
    (results / "plans.json").write_text(json.dumps(plans))


def cut(results: Path) -> None:
    file = results / "fold_0/checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:1000])


class Harmful:
    """Pickled code that would run when loaded without care."""

    def __reduce__(self):
        return pytest.fail, ("the checkpoint was executed",)


def infect(results: Path) -> None:
    file = results / "fold_0/checkpoint_final.pth"
    torch.save({"network_weights": {}, "logging": Harmful()}, file)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda r: (r / "fold_0/checkpoint_final.pth").unlink(), FileNotFoundError, "train that"),
        (lambda r: (r / "plans.json").unlink(), FileNotFoundError, "plans.json"),
        (other_plans, ValueError, "does not fit"),
        (cut, ValueError, "damaged"),
        (infect, ValueError, "not loaded for safety"),
        (
            lambda r: torch.save({"a": 1}, r / "fold_0/checkpoint_final.pth"),
            ValueError,
            "no checkpoint",
        ),
    ],
    ids=["no checkpoint", "no plans", "other plans", "cut", "harmful", "other file"],
)
def test_a_failed_export_is_a_sentence_and_leaves_nothing(
    make_results, tmp_path, spoil, error, words
):
    results = make_results()
    spoil(results)
    (tmp_path / "out").mkdir()
    with pytest.raises(error, match=words) as raised:
        export_bundle(results, tmp_path / "out/bundle")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_harmful_pickles_are_harmful_elsewhere():
    """What `infect` writes does run where it is loaded without care."""
    with pytest.raises(pytest.fail.Exception):
        pickle.loads(pickle.dumps(Harmful()))
