"""`mambamed label-demo` at its smallest: a server of its own, one whole loop, pictures."""

from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK as sitk

from nnunet_plugins.cli import main
from nnunet_plugins.demo.annotation import MODEL, demonstrate
from nnunet_plugins.demo.annotation_client import running_server
from nnunet_plugins.demo.annotation_pictures import draw_study
from tests.nnunet_plugins.label.conftest import draw_case, needs_monai_label

pytestmark = needs_monai_label


def pixels(picture: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(picture)))


def test_the_loop_is_shown_and_the_server_ends(tmp_path):
    said: list[str] = []
    outcome = demonstrate(tmp_path, cases=5, epochs=1, round_epochs=1, say=said.append)
    report = outcome.report
    assert set(outcome.before) == set(outcome.after) == {"phantom_003", "phantom_004"}
    assert sorted(report["trained_on"] + report["held_out"]) == ["phantom_002", outcome.corrected]
    assert any(report["verdict"] in line for line in said)
    assert [p.name for p in outcome.pictures] == ["phantom_003.png", "phantom_004.png"]
    assert all(pixels(picture).std() > 10 for picture in outcome.pictures)
    (run,) = tmp_path.glob("run_*")
    studies = run / "studies"
    assert (studies / f".mambamed/models/{MODEL}/model.pt").is_file()
    assert (studies / f".mambamed/models/{MODEL}/previous.pt").is_file()
    assert not (run / ".token").exists()
    address = next(line.strip() for line in said if "http://127.0.0.1" in line)
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)


def test_a_server_that_does_not_start_says_why(tmp_path):
    (tmp_path / "studies").mkdir()
    start = running_server(tmp_path / "studies", tmp_path / "nothing", tmp_path / "server.log")
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*there is no bundle"), start:
        pass
    assert not (tmp_path / ".token").exists()


def test_too_few_cases_are_one_line(tmp_path, capsys):
    assert main(["label-demo", "--output", str(tmp_path / "out"), "--cases", "4"]) == 1
    assert "--cases 4 is too few" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_picture_shows_each_label_beside_the_slice(tmp_path):
    image, label = draw_case(1)
    for name, array in (("image", image), ("label", label), ("none", np.zeros_like(label))):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.nii.gz"))
    classes = {"shell": 1, "core": 2}
    drawn = [
        pixels(
            draw_study(
                tmp_path / f"{name}.png", tmp_path / "image.nii.gz",
                {"truth": tmp_path / "label.nii.gz", "found": tmp_path / f"{name}.nii.gz"}, classes,
            )
        )
        for name in ("label", "none")
    ]  # fmt: skip
    middle = drawn[0].shape[1] * 2 // 3
    coloured = [np.ptp(picture[50:-60, middle:, :3].astype(int), axis=2).max() for picture in drawn]
    assert coloured[0] > 50
    assert coloured[1] < 10
