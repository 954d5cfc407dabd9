import json
from pathlib import Path

import pytest

from pretrain.volumes import find_scans

FORMATS = ["a.nii", "b.nii.gz", "c.nrrd", "d/e.nhdr", "d/f.mha", "d/g/h.mhd"]


def names(scans, top):
    return [str(Path(scan.path).relative_to(top)) for scan in scans]


def test_a_folder_is_searched_to_its_bottom(write, tmp_path):
    for name in FORMATS:
        write(name)
    for name in (".hidden.nii.gz", "labelsTr/a.nii.gz", ".trash/a.nii.gz"):
        write(name)
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "around").symlink_to(tmp_path)
    assert names(find_scans(tmp_path), tmp_path) == FORMATS


@pytest.mark.parametrize("compress", [False, True])
def test_voxels_apart_from_their_header_belong_to_the_scan(write, compress):
    for name, endings in (("a.mhd", (".raw", ".zraw")), ("a.nhdr", (".raw", ".raw.gz"))):
        header = write(name, compress=compress)
        (scan,) = find_scans(header)
        assert scan.files == (str(header), str(header.with_suffix(endings[compress])))


def test_every_series_of_a_folder_is_one_scan_with_its_slices_in_order(write_series):
    folder = write_series("patient", range(6), "1.2.3")
    write_series("patient", range(4), "1.2.4")
    first, second = find_scans(folder.parent)
    assert (first.series, len(first.files), second.series, len(second.files)) == (
        "1.2.3", 6, "1.2.4", 4,
    )  # fmt: skip
    assert first.path == second.path == str(folder)
    assert [Path(file).name for file in second.files] == [
        f"1.2.4-{n}.dcm" for n in (99, 98, 97, 96)
    ]


def test_real_series(shared):
    scans = find_scans(shared / "data/dicom")
    counts = {Path(scan.path).name: len(scan.files) for scan in scans if len(scan.files) > 1}
    assert counts["CT_3slice_liver"] == 3
    assert counts["PGBM-002_HippoCrop"] == 32


MANIFESTS = {
    "list.json": json.dumps(["scans/b.nii", {"path": "scans/a.nii", "weight": 2}]),
    "object.json": json.dumps({"scans": ["scans/b.nii", {"path": "scans/a.nii", "weight": "2"}]}),
    "table.csv": "path,weight\nscans/b.nii,\nscans/a.nii,2\n",
    "bom.csv": "\ufeffpath,weight\nscans/b.nii,1\nscans/a.nii,2\n",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_gives_paths_relative_to_it_in_its_order(name, write, tmp_path):
    for scan in ("scans/a.nii", "scans/b.nii"):
        write(scan)
    (tmp_path / name).write_text(MANIFESTS[name], encoding="utf-8")
    scans = find_scans(tmp_path / name)
    assert names(scans, tmp_path) == ["scans/b.nii", "scans/a.nii"]
    assert [scan.weight for scan in scans] == [1, 2]


def test_a_manifest_may_list_folders_and_what_is_missing(write, tmp_path):
    write("scans/a.nii")
    (tmp_path / "list.txt").write_text(f"scans\n\n{tmp_path}/gone.nii.gz\n")
    assert names(find_scans(tmp_path / "list.txt"), tmp_path) == ["scans/a.nii", "gone.nii.gz"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "[", "is no JSON"),
        ("a.json", "3", "holds no list"),
        ("a.json", '{"training": []}', "holds no list"),
        ("a.json", '[{"image": "a.nii"}]', "entry without a path"),
        ("a.csv", "image\na.nii\n", "entry without a path"),
        ("a.csv", "path,weight\na.nii,often\n", "the weight 'often'"),
        ("a.csv", "path,weight\na.nii,-1\n", "the weight '-1'"),
        ("a.json", '[{"path": "a.nii", "weight": NaN}]', "the weight nan"),
        ("a.json", '[{"path": "a.nii", "series": "1.2"}]', "holds no scan"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        find_scans(tmp_path / name)


def test_a_source_without_scans_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no scans"):
        find_scans(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_scans(tmp_path / "gone")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match="lists no scans"):
        find_scans(tmp_path / "a.json")
