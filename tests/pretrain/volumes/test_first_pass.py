import errno
import json
import shutil
import time

import nibabel
import numpy as np
import pytest

from pretrain.volumes import Preparation, describe, find_scans, first_pass, reading
from tests.pretrain.volumes.phantom import blob

KEEP = Preparation(spacing=None)


def spoil(path, change):
    path.write_bytes(change(path.read_bytes()))


def truncated(data):
    return data[: len(data) * 2 // 3]


def with_voxel(value):
    array = blob().astype(np.float32)
    array[3, 4, 5] = value
    return array


def noise():
    return np.random.default_rng(0).integers(0, 2**15, (60, 60, 60)).astype(np.int16)


def zero_spacing(write):
    image = nibabel.Nifti1Image(blob(), np.eye(4))
    data = bytearray(image.to_bytes())
    data[84:88] = np.float32(0).tobytes()  # pixdim[2]
    path = write("bad.nii")
    path.write_bytes(data)


BY_HEADERS = {
    "missing": (lambda write: write("bad.nii").unlink(), "the file is missing"),
    "empty": (lambda write: spoil(write("bad.nii"), lambda data: b""), "the file is empty"),
    "garbage": (
        lambda write: spoil(write("bad.nii"), lambda data: b"\1" * 999),
        "header cannot be read",
    ),
    "two-axes": (lambda write: write("bad.nrrd", blob()[0]), "it has 2 axes"),
    "vector": (
        lambda write: write("bad.nrrd", np.zeros((9, 9, 9, 3), np.uint8), vector=True),
        "3 channels where 1",
    ),
    "four-axes": (
        lambda write: write("bad.nii.gz", np.zeros((5, 9, 9, 9), np.int16), (1, 1, 1, 1)),
        "5 channels where 1",
    ),
    "complex": (
        lambda write: write("bad.nii", np.zeros((9, 9, 9), np.complex64)),
        "complex numbers",
    ),
    "thin": (lambda write: write("bad.mha", blob((3, 24, 28))), "at least 4 voxels"),
    "zero-spacing": (zero_spacing, "its spacing is 1 x 0 x 1 mm"),
    "metres": (
        lambda write: write("bad.nrrd", spacing=(1, 1, 1000)),
        "spacing cannot be true",
    ),
    "data-missing": (
        lambda write: write("bad.mhd", compress=False).with_suffix(".raw").unlink(),
        "bad.raw is missing",
    ),
}
BY_VOXELS = {
    "truncated-nii.gz": (lambda write: spoil(write("bad.nii.gz"), truncated), "end-of-stream"),
    "tail-nii.gz": (
        lambda write: spoil(write("bad.nii.gz"), lambda data: data[:-4]),
        "end-of-stream",
    ),
    "checksum-nii.gz": (
        lambda write: spoil(
            write("bad.nii.gz", noise()), lambda data: data[:-8] + b"\0" * 4 + data[-4:]
        ),
        "CRC check failed",
    ),
    "truncated-nii": (
        lambda write: spoil(write("bad.nii"), truncated),
        "cannot be read: Expected",
    ),
    "truncated-nrrd": (lambda write: spoil(write("bad.nrrd"), truncated), "cannot be read"),
    "truncated-mha": (lambda write: spoil(write("bad.mha"), truncated), "cannot be read"),
    "constant": (
        lambda write: write("bad.nii.gz", np.full((9, 9, 9), 7, np.int16)),
        "all its voxels are 7",
    ),
} | {
    f"{value}-{ending}": (
        lambda write, value=value, ending=ending: write(f"bad.{ending}", with_voxel(value)),
        "1 voxels are NaN or infinite",
    )
    for value in (np.nan, np.inf)
    for ending in ("nii.gz", "nrrd", "mha")
}


def look(tmp_path, names, **options):
    (tmp_path / "list.json").write_text(json.dumps(names))
    return first_pass(find_scans(tmp_path / "list.json"), KEEP, **options)


def bad_name(tmp_path):
    found = [path.name for path in tmp_path.glob("bad.*") if path.suffix not in (".raw", ".zraw")]
    return found[0] if found else "bad.nii"


@pytest.mark.parametrize("case", BY_HEADERS)
def test_headers_show(case, write, tmp_path):
    write("good.nii.gz")
    make, words = BY_HEADERS[case]
    make(write)
    findings = look(tmp_path, ["good.nii.gz", bad_name(tmp_path)])
    assert [kept.shape for kept in findings.kept] == [(20, 24, 28)]
    (bad,) = findings.left_out
    assert words in bad.reason


@pytest.mark.parametrize("case", BY_VOXELS)
def test_only_voxels_show(case, write, tmp_path):
    write("good.nii.gz")
    make, words = BY_VOXELS[case]
    make(write)
    names = ["good.nii.gz", bad_name(tmp_path)]
    assert len(look(tmp_path, names).kept) == 2
    findings = look(tmp_path, names, check="voxels")
    assert len(findings.kept) == 1
    (bad,) = findings.left_out
    assert words in bad.reason


def test_a_series_with_a_gap_or_of_two_volumes_is_left_out(write_series, tmp_path):
    write_series("good", [0, 2.5, 5, 7.5, 10], "1.1")
    write_series("gap", [0, 2.5, 5, 10, 12.5], "1.2")
    write_series("twice", [0, 0, 2.5, 2.5, 5, 5], "1.3")
    write_series("again", [0, 2.5, 5, 5, 7.5, 10], "1.5")
    write_series("labels", range(5), "1.4", modality="SEG")
    findings = first_pass(find_scans(tmp_path), KEEP, check="voxels")
    assert [(kept.scan.series, kept.shape) for kept in findings.kept] == [("1.1", (5, 16, 16))]
    reasons = {bad.source.series: bad.reason for bad in findings.left_out}
    assert "2.5 to 5 mm apart" in reasons["1.2"]
    assert "0 to 2.5 mm apart" in reasons["1.3"]
    assert "0 to 2.5 mm apart" in reasons["1.5"]
    assert "SEG is no scan" in reasons["1.4"]


def test_spacing_of_a_series_decides_its_shape(write_series, tmp_path):
    write_series("a", [0, 2.5, 5, 7.5, 10, 12.5, 15, 17.5], "1.1")
    (kept,) = first_pass(find_scans(tmp_path), Preparation(spacing=(5, 1, 2))).kept
    assert kept.shape == (4, 32, 16)


def test_on_bad_stop_names_them(write, tmp_path):
    write("good.nii.gz")
    with pytest.raises(ValueError, match=r"1 of 2 scans cannot be used:\n.*gone.nii: .*missing"):
        look(tmp_path, ["good.nii.gz", "gone.nii"], on_bad="stop")


def test_only_bad_scans_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"12 of 12 scans cannot be used(.*\n){11}and 2 more"):
        look(tmp_path, [f"{n}.nii" for n in range(12)])


@pytest.mark.parametrize("option", [{"check": "all"}, {"on_bad": "ignore"}])
def test_unknown_options_are_refused(option, write):
    with pytest.raises(ValueError, match=next(iter(option))):
        first_pass(find_scans(write("a.nii")), KEEP, **option)


def test_a_copy_has_the_same_fingerprint_and_changed_data_another(write, tmp_path):
    for seed in range(3):
        write(f"scans/{seed}.nii.gz", blob(seed=seed))
    original = first_pass(find_scans(tmp_path / "scans"), KEEP)
    shutil.copytree(tmp_path / "scans", tmp_path / "elsewhere/scans", copy_function=shutil.copy)
    copy = first_pass(find_scans(tmp_path / "elsewhere"), KEEP)
    assert copy.fingerprint == original.fingerprint
    assert copy.kept[0].identity != original.kept[0].identity
    coarser = first_pass(find_scans(tmp_path / "scans"), Preparation(spacing=(2, 2, 2)))
    assert coarser.fingerprint != original.fingerprint
    write("elsewhere/scans/1.nii.gz", blob(seed=9))
    changed = first_pass(find_scans(tmp_path / "elsewhere"), KEEP)
    assert changed.fingerprint != original.fingerprint
    fewer = first_pass(find_scans(tmp_path / "scans")[:2], KEEP)
    assert fewer.fingerprint != original.fingerprint


def test_a_change_of_the_last_voxel_changes_the_fingerprint(write):
    path = write("a.nii")
    before = first_pass(find_scans(path), KEEP)
    spoil(path, lambda data: data[:-1] + b"\1")
    assert first_pass(find_scans(path), KEEP).fingerprint != before.fingerprint


def test_a_file_that_may_not_be_read_is_left_out(write, tmp_path, monkeypatch):
    write("a.nii")
    write("b.nii.gz")

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(reading.gzip, "open", refuse)
    findings = first_pass(find_scans(tmp_path), KEEP)
    assert len(findings.kept) == 1
    assert findings.left_out[0].reason == "it cannot be read: Permission denied"


def test_the_description_repeats_the_run(write, write_series, tmp_path):
    write("data/a.nii.gz")
    write("data/b.mhd")
    write("data/thin.nrrd", blob((3, 9, 9)))
    write_series("data/series", range(5), "1.1")
    write_series("data/series", range(6), "1.2")
    findings = first_pass(find_scans(tmp_path / "data"), KEEP)
    (tmp_path / "run.json").write_text(json.dumps(describe(findings)))
    plain = json.loads((tmp_path / "run.json").read_text())
    again = first_pass(find_scans(tmp_path / "run.json"), Preparation(**plain["preparation"]))
    assert again.kept == findings.kept
    assert again.fingerprint == plain["fingerprint"]
    assert [bad["reason"] for bad in plain["left_out"]] == [findings.left_out[0].reason]


def test_headers_of_many_scans_are_looked_through_quickly(write, tmp_path):
    path = write("0.nii.gz")
    for number in range(1, 600):
        (tmp_path / f"{number}.nii.gz").symlink_to(path)
    started = time.process_time()
    assert len(first_pass(find_scans(tmp_path), KEEP).kept) == 600
    assert time.process_time() - started < 6  # 6,000 in a minute of one core
