"""What the buttons do: predictions, candidates and jobs."""

import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_plugins.label.shelf import Shelf
from tests.nnunet_plugins.label.page.conftest import (
    enabled,
    labels_of,
    needs_a_browser,
    says,
    shown,
)

pytestmark = needs_a_browser


def test_segment_reject_segment_accept(page, choose, server):
    choose("study_2")
    folder = server.studies / "labels"
    page.click("#segment")
    shown(page, "study_2", "original")
    enabled(page, "reject")
    page.key("R")
    shown(page, "study_2", "")
    assert labels_of(server, "study_2") == {}
    assert not (folder / "original/study_2.nii.gz").exists()
    page.key("s")
    shown(page, "study_2", "original")
    enabled(page, "accept")
    page.key("A")
    shown(page, "study_2", "final")
    made, kept = (folder / tag / "study_2.nii.gz" for tag in ("original", "final"))
    assert kept.read_bytes() == made.read_bytes()
    assert labels_of(server, "study_2")["final"]["accepted"]
    page.wait("document.getElementById('accept').disabled")


def test_an_older_final_label_is_only_replaced_when_agreed_to(page, choose, server):
    choose("study_0", "final")
    final = server.studies / "labels/final/study_0.nii.gz"
    before = final.read_bytes()
    page.click("#segment")
    shown(page, "study_0", "original")
    enabled(page, "accept")
    for button, replaced in (("no", False), ("yes", True)):
        page.click("#accept")
        page.wait("document.querySelector('dialog[open] button[value=yes]')")
        page.click(f"dialog[open] button[value={button}]")
        page.wait("!document.querySelector('dialog[open]')")
        if replaced:
            shown(page, "study_0", "final")
        assert (final.read_bytes() != before) == replaced


def test_next_opens_what_the_model_is_least_sure_of(page, server):
    page.click("#next")
    says(page, "uncertainty")
    wanted = server.client.post("/activelearning/uncertainty", json={"model": "tiny"}).json()["id"]
    assert page.run("document.getElementById('study-name').textContent") == wanted


def test_failures_are_told_in_sentences(page, server):
    page.click(".study[data-name=broken]")
    says(page, "cannot be read as a volume")
    page.run("window.fetch = () => Promise.reject(new TypeError('down'))")
    page.click("#reload")
    says(page, "does not answer")


def test_a_prediction_that_changed_meanwhile_is_not_accepted(page, choose, server):
    choose("clip", "original")
    file = server.studies / "labels/original/clip.nii.gz"
    file.write_bytes(file.read_bytes())
    page.click("#accept")
    says(page, "newer prediction")
    assert "final" not in labels_of(server, "clip")


def test_a_candidate_is_compared_and_promoted(page, server, bundle_folder):
    shelf = Shelf(server.studies / ".mambamed/models/tiny", bundle_folder / "models/model.pt")
    report = {
        "verdict": "the candidate is better than the served model: Dice 0.8123 and 0.7001",
        "mean_dice": {"candidate": 0.8123, "served": 0.7001}, "better": True, "epochs": 3,
        "dice": {"candidate": {"study_0": {"shell": 0.8, "core": None}},
                 "served": {"study_0": {"shell": 0.7, "core": None}}},
        "trained_on": ["a", "b"], "held_out": ["study_0"], "made": "2026-01-02T03:04:05+00:00",
        "patients": "of 1 of 3 studies no patient is known",
    }  # fmt: skip
    shelf.put_candidate(torch.load(shelf.shipped, weights_only=True), report)
    page.click("#reload")
    page.wait("document.querySelector('.candidate-box')")
    told = page.run("document.querySelector('.candidate-box').innerText")
    assert "0.812" in told
    assert "0.700" in told
    assert "Of 1 of 3 studies no patient is known." in told
    assert shelf.served == shelf.shipped
    page.click(".candidate-box button")
    page.wait("document.querySelector('dialog[open] table')")
    asked = page.run("document.querySelector('dialog[open]').innerText")
    assert "0.800" in asked
    assert "no patient is known" in asked
    page.click("dialog[open] button[value=yes]")
    page.wait("!document.querySelector('.candidate-box')")
    assert shelf.served == shelf.model
    page.wait("document.getElementById('models').textContent.includes('2026-01-02, promoted')")
    page.click("#models [data-act=restore]")
    page.wait("document.querySelector('dialog[open]')")
    page.click("dialog[open] button[value=yes]")
    page.wait("document.getElementById('models').textContent.includes('as it came')")
    assert not shelf.previous.is_file()


def test_a_training_is_started_watched_and_stopped(page, server):
    page.run("document.querySelector('#models input[name=epochs]').value = 500")
    page.click("#models [data-act=train]")
    page.wait("document.querySelector('.job[data-kind=train]')")
    page.wait("document.querySelector('.job[data-status=RUNNING]')")
    request = server.client.get("/train/").json()["request"]
    assert (request["model"], request["max_epochs"]) == ("tiny", 500)
    page.click(".job button")
    page.wait("document.querySelector('.job[data-status=STOPPED]')")
    assert server.client.get("/train/?check_if_running=true").status_code == 404


def saved(folder: Path, name: str) -> Path:
    """A file that the page let save, once it is whole."""
    deadline = time.monotonic() + 30
    while not (folder / name).is_file():
        assert time.monotonic() < deadline, list(folder.iterdir())
        time.sleep(0.05)
    return folder / name


def test_a_mask_is_saved_as_nifti_whatever_it_is_kept_as(page, choose, server, tmp_path):
    page.save_to(tmp_path)
    for study, kept in (("turned", "turned.nrrd"), ("study_1", "study_1.nii.gz")):
        if study == "study_1":
            other = sitk.ReadImage(str(server.studies / "study_1.nii.gz")) > 0
            sitk.WriteImage(other, str(tmp_path / "label.nii.gz"))
            assert server.put_label(study, tmp_path / "label.nii.gz").status_code == 200
            page.click("#reload")
            page.wait("document.querySelector('.study[data-name=study_1] .final')")
        choose(study, "final")
        assert page.run("document.getElementById('save-seg').hidden")
        page.click("#save-nifti")
        file = saved(tmp_path, f"{study}_final.nii.gz")
        found, wanted = (
            sitk.ReadImage(str(file)),
            sitk.ReadImage(str(server.studies / "labels/final" / kept)),
        )
        assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(wanted))
        assert found.GetOrigin() == pytest.approx(wanted.GetOrigin(), abs=1e-4)
        assert found.GetDirection() == pytest.approx(wanted.GetDirection(), abs=1e-5)
    assert list((server.studies / ".mambamed/tmp").iterdir()) == []
    page.click("#tags button:last-child")
    page.wait("document.getElementById('save').hidden")


def test_a_mask_of_a_series_is_saved_as_dicom_seg(page, choose, server, tmp_path):
    import pydicom

    from nnunet_plugins.label.dicom_series import read_series
    from tests.nnunet_plugins.label.test_dicom import decoded

    page.save_to(tmp_path)
    choose("series", "final")
    page.key("d")
    saved(tmp_path, "series_final.nii.gz")
    page.click("#save-seg")
    seg = pydicom.dcmread(saved(tmp_path, "series_final.dcm"))
    headers = read_series(server.studies, "series").headers
    kept = sitk.ReadImage(str(server.studies / "labels/final/series.nrrd"))
    assert np.array_equal(decoded(seg, headers), sitk.GetArrayFromImage(kept))
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["shell", "core"]
