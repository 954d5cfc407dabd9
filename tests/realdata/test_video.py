"""Real videos from files to figures, by the commands of the README; run by `pytest -m realdata`."""

import json

import av
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.realdata
TRAINER = "VivimTrainer_small_1epochs_4iterations"
CLASSES = (
    "vocal_folds", "other_tissue", "glottal_space", "pathology", "surgical_tool", "intubation",
)  # fmt: skip


def test_laryngoscopies_from_frames_to_report_and_bundle(run, shared, tmp_path):
    """Seven classes of two patients: one is trained on and the other predicted."""
    videos = shared / "data/video"
    run(
        "mambamed", "dataset", "from-videos", videos / "vocalfolds", "--id", 12, "--name", "Folds",
        "--labels", *CLASSES, "--group-by", r"^(patient\d+)",
    )  # fmt: skip
    run("mambamed", "dataset", "check-leak", "12")
    run(
        "nnUNetv2_plan_and_preprocess", "-d", 12, "-c", "3d_fullres", "-pl", "VivimPlanner", "-np",
        1, "-npfp", 1,
    )  # fmt: skip
    plans = ["-tr", TRAINER, "-p", "nnUNetVivimPlans"]
    run("nnUNetv2_train", 12, "3d_fullres", 0, *plans, "-device", "cpu")
    results = tmp_path / f"results/Dataset012_Folds/{TRAINER}__nnUNetVivimPlans__3d_fullres"
    validation = results / "fold_0/validation"
    predicted = sorted(path.name for path in validation.glob("*.nii.gz"))
    folds = json.loads((tmp_path / "raw/Dataset012_Folds/splits_final.json").read_text())
    assert predicted == [f"{name}.nii.gz" for name in sorted(folds[0]["val"])]
    (tmp_path / "truth").mkdir()
    for name in predicted:
        (tmp_path / "truth" / name).symlink_to(tmp_path / "raw/Dataset012_Folds/labelsTr" / name)
    report = tmp_path / "report"
    run("mambamed", "evaluate", "video", validation, tmp_path / "truth", "--output", report)
    assert (report / "report.html").stat().st_size > 10_000
    run("mambamed", "dataset", "to-videos", validation, "--dataset", 12, "--out", "masks")
    with av.open(str(tmp_path / "masks" / predicted[0].split(".")[0] / "overlay.mp4")) as overlay:
        assert sum(1 for _ in overlay.decode(video=0)) > 10

    run("mambamed", "export-bundle", "--results", results, "--out", "bundle")
    source = next((videos / "VTUS").glob("*/*.mp4"))
    run(
        "python", "-m", "monai.bundle", "run", "--config_file", "bundle/configs/inference.json",
        "--dataset_dir", source, "--output_dir", "segmented",
    )  # fmt: skip
    with av.open(str(source)) as video:
        sizes = {(frame.height, frame.width) for frame in video.decode(video=0)}
    masks = sorted((tmp_path / f"segmented/{source.stem}/masks").glob("*.png"))
    assert {np.asarray(Image.open(file)).shape for file in masks} == sizes
