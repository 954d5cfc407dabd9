"""Folders of DICOM series as studies, and labels as DICOM SEG that read back the same."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("pydicom_seg")

from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid  # noqa: E402

from nnunet_plugins.label.dicom_seg import write_seg  # noqa: E402
from nnunet_plugins.label.dicom_series import (  # noqa: E402
    import_series,
    read_series,
    read_volume,
)
from tests.nnunet_plugins.label.conftest import (  # noqa: E402
    Server,
    draw_case,
    needs_monai_label,
    write_studies,
)
from tests.nnunet_plugins.label.test_models import assert_equal  # noqa: E402
from tests.nnunet_plugins.label.test_server import expected_masks, infer  # noqa: E402

pytestmark = needs_monai_label
OBLIQUE = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1.0]]).T[:, [2, 0, 1]]
"""Columns: where the axes of columns, rows and slices point."""
SPACING = (0.9, 1.1, 2.5)


def write_series(
    folder: Path,
    volume: np.ndarray,
    change: Callable[[int, FileDataset], None] = lambda index, image: None,
) -> Path:
    """A volume (z, y, x) of whole numbers as DICOM, its files named in no order of the slices."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    names = np.random.default_rng(3).permutation(len(volume))
    for index, pixels in enumerate(volume.astype(np.int16)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        image.is_little_endian, image.is_implicit_VR = True, False
        image.SpecificCharacterSet, image.PatientName = "ISO_IR 192", "Müller^Ж"
        image.PatientID, image.Modality = "17", "MR"
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID = frame
        image.Rows, image.Columns = pixels.shape
        image.PixelSpacing = [SPACING[1], SPACING[0]]
        image.ImageOrientationPatient = OBLIQUE.T[:2].ravel().tolist()
        place = np.array([5.0, -7.0, 11.0]) + index * SPACING[2] * OBLIQUE[:, 2]
        image.ImagePositionPatient = [round(float(x), 6) for x in place]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelRepresentation = 1
        image.PixelData = pixels.tobytes()
        change(index, image)
        image.save_as(folder / f"{names[index]:03d}.dcm", write_like_original=False)
    return folder


def decoded(seg: pydicom.Dataset, headers: list[pydicom.Dataset]) -> np.ndarray:
    """Labels (z, y, x) of a DICOM SEG by the images that its frames refer to, not by geometry."""
    slices = {header.SOPInstanceUID: index for index, header in enumerate(headers)}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    labels = np.zeros((len(headers), seg.Rows, seg.Columns), np.uint16)
    for frame, about in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = about.DerivationImageSequence[0].SourceImageSequence
        index = slices[source.ReferencedSOPInstanceUID]
        place = about.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, headers[index].ImagePositionPatient, atol=1e-4)
        segment = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[index][frame > 0] = segment
    return labels


def test_a_series_becomes_a_volume_at_its_place(tmp_path):
    volume = np.round(draw_case(1)[0] * 100)
    write_series(tmp_path / "patient_1", volume)
    assert import_series(tmp_path, tmp_path / ".tmp") == {"patient_1": "study"}
    image = sitk.ReadImage(str(tmp_path / "patient_1.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(image), volume)
    assert np.allclose(image.GetSpacing(), SPACING, atol=1e-5)
    assert np.allclose(image.GetDirection(), OBLIQUE.ravel(), atol=1e-5)
    assert np.allclose(image.GetOrigin(), (5, -7, 11), atol=1e-4)
    written = (tmp_path / "patient_1.nii.gz").stat().st_mtime_ns
    import_series(tmp_path, tmp_path / ".tmp")
    assert (tmp_path / "patient_1.nii.gz").stat().st_mtime_ns == written
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_values_are_in_the_units_of_the_headers(tmp_path):
    def scale(index: int, image: FileDataset) -> None:
        image.RescaleSlope, image.RescaleIntercept = "2", "-1024"

    volume = np.arange(4 * 6 * 5).reshape(4, 6, 5)
    write_series(tmp_path / "ct", volume, scale)
    found = read_volume(read_series(tmp_path, "ct"))
    assert np.array_equal(sitk.GetArrayFromImage(found), 2 * volume - 1024)


def test_slices_with_units_of_their_own_keep_them(tmp_path):
    def scale(index: int, image: FileDataset) -> None:
        image.RescaleSlope, image.RescaleIntercept = str(1 + index / 4), "0"

    volume = np.arange(4 * 6 * 5).reshape(4, 6, 5)
    write_series(tmp_path / "pet", volume, scale)
    found = sitk.GetArrayFromImage(read_volume(read_series(tmp_path, "pet")))
    assert np.allclose(found, volume * (1 + np.arange(4) / 4)[:, None, None])


def _without(index: int, image: FileDataset) -> None:
    if index == 2:
        del image.ImagePositionPatient


def _moved(index: int, image: FileDataset) -> None:
    if index > 2:
        image.ImagePositionPatient = [x + 3 for x in image.ImagePositionPatient]


def _tilted(index: int, image: FileDataset) -> None:
    along = OBLIQUE[:, 1]
    image.ImagePositionPatient = list(np.array(image.ImagePositionPatient) + index * along)


def _two_series(index: int, image: FileDataset) -> None:
    if index == 1:
        image.SeriesInstanceUID = generate_uid()


def _at_one_place(index: int, image: FileDataset) -> None:
    image.ImagePositionPatient = [0, 0, 0]


def _twice(index: int, image: FileDataset) -> None:
    image.SOPInstanceUID = "1.2.3"


def _many_frames(index: int, image: FileDataset) -> None:
    image.NumberOfFrames = 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without, "ImagePositionPatient"), (_moved, "mm apart"), (_tilted, "tilted gantry"),
        (_two_series, "differ in SeriesInstanceUID"), (_at_one_place, "at one place"),
        (_twice, "there twice"), (_many_frames, "several frames"),
    ],
)  # fmt: skip
def test_what_is_no_even_stack_is_refused(tmp_path, change, words):
    write_series(tmp_path / "odd", np.zeros((5, 6, 7)), change)
    assert words in import_series(tmp_path, tmp_path / ".tmp")["odd"]
    assert [path.name for path in tmp_path.glob("*.nii.gz")] == []


def test_damaged_missing_and_foreign_files_are_refused(tmp_path):
    studies = tmp_path / "studies"
    folder = write_series(studies / "one", np.zeros((5, 6, 7)))
    (folder / "001.dcm").write_bytes(b"no DICOM")
    outside = write_series(tmp_path / "outside", np.zeros((5, 6, 7)))
    (studies / "linked").symlink_to(outside)
    shutil.copytree(outside, studies / "partly")
    (studies / "partly/000.dcm").unlink()
    (studies / "partly/000.dcm").symlink_to(outside / "000.dcm")
    shutil.copytree(outside, studies / "bad name")
    found = import_series(studies, tmp_path / ".tmp")
    assert "001.dcm cannot be read as DICOM" in found["one"]
    assert "leads out of the folder" in found["linked"]
    assert "leads out of the folder" in found["partly"]
    assert "cannot be the name of a study" in found["bad name"]
    for name in ("nothing", "labels"):
        with pytest.raises(FileNotFoundError, match="no folder of DICOM"):
            read_series(studies, name)
    with pytest.raises(ValueError, match="leads out"):
        read_series(studies, "../outside")


def test_dicom_seg_reads_back_the_same_and_names_the_patient(tmp_path):
    image, label = draw_case(2)
    label[3] = 0
    write_series(tmp_path / "one", image * 100)
    series = read_series(tmp_path, "one")
    volume = series.lay(sitk.GetImageFromArray(label * 3))
    sitk.WriteImage(volume, str(tmp_path / "label.nii.gz"))
    file = write_seg(
        tmp_path / "seg.dcm", series, tmp_path / "label.nii.gz", {"shell": 3}, "mambamed x", True
    )
    seg, source = pydicom.dcmread(file), series.headers[0]
    assert np.array_equal(decoded(seg, series.headers), label * 3)
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert getattr(seg, name) == getattr(source, name)
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["shell", "label 6"]
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert seg.Modality == "SEG"
    assert {"PatientBirthDate", "PatientSex", "StudyDate"} <= set(seg.dir())


def test_labels_that_cannot_be_dicom_seg_are_refused(tmp_path):
    write_series(tmp_path / "one", np.zeros((5, 6, 7)))
    series = read_series(tmp_path, "one")
    empty = series.lay(sitk.GetImageFromArray(np.zeros((5, 6, 7), np.uint8)))
    moved = sitk.GetImageFromArray(np.ones((5, 6, 7), np.uint8))
    large = series.lay(sitk.GetImageFromArray(np.full((5, 6, 7), 70000, np.uint32)))
    for name, volume, words in (
        ("empty", empty, "is empty"), ("moved", moved, "grid"), ("large", large, "65535"),
    ):  # fmt: skip
        file = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(volume, str(file))
        with pytest.raises(ValueError, match=words):
            write_seg(tmp_path / "seg.dcm", series, file, {}, "x", False)
    assert not (tmp_path / "seg.dcm").exists()


@pytest.fixture(scope="module")
def hippocampus(shared, tmp_path_factory) -> Path:
    """Studies: a real DICOM series whose geometry is odd, one that cannot be taken, volumes."""
    studies = write_studies(tmp_path_factory.mktemp("studies"), 1)
    source = shared / "data/dicom/PGBM-002_HippoCrop"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    shutil.copytree(source, studies / "PGBM-002")
    write_series(studies / "gap", np.zeros((5, 6, 7)), _moved)
    return studies


@pytest.fixture(scope="module")
def server(serve, hippocampus) -> Server:
    """One server over them."""
    return serve(studies=hippocampus)


def test_a_served_mask_leaves_as_dicom_seg(server, hippocampus, bundle_folder, tmp_path):
    listed = server.client.get("/dicom/series").json()
    assert listed["PGBM-002"] == "study"
    assert "mm apart" in listed["gap"]
    mask = infer(server, "tiny", "PGBM-002", tmp_path)
    assert_equal(mask, expected_masks(bundle_folder, hippocampus, tmp_path) / "PGBM-002.nii.gz")
    saved = server.client.post(
        "/infer/tiny", params={"image": "PGBM-002", "output": "json"},
        data={"params": '{"save_label": true}'},
    )  # fmt: skip
    assert saved.status_code == 200
    answer = server.client.get("/dicom/label", params={"image": "PGBM-002", "tag": "original"})
    assert answer.status_code == 200, answer.text
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    seg, series = pydicom.dcmread(tmp_path / "seg.dcm"), read_series(hippocampus, "PGBM-002")
    assert [int(h.InstanceNumber) for h in series.headers] == list(range(1, 33))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
    assert np.array_equal(decoded(seg, series.headers), expected)
    assert {s.SegmentLabel for s in seg.SegmentSequence} <= {"shell", "core"}
    assert seg.PatientID == "PGBM-002"
    assert server.put_label("PGBM-002", mask).status_code == 200
    final = server.client.get("/dicom/label", params={"image": "PGBM-002"})
    assert final.status_code == 200
    assert list((hippocampus / ".mambamed/tmp").glob("dicom_*")) == []


def test_requests_for_dicom_that_cannot_be_are_told_so(server, tmp_path):
    for query, status in (
        ({"image": "study_0"}, 404), ({"image": "nothing"}, 404), ({"image": "../x"}, 404),
        ({"image": "PGBM-002", "tag": "../.."}, 404), ({"image": "PGBM-002", "model": "$x"}, 400),
    ):  # fmt: skip
        answer = server.client.get("/dicom/label", params=query)
        assert answer.status_code == status, answer.text
    assert server.anonymous().get("/dicom/label", params={"image": "PGBM-002"}).status_code == 401
    for name in ("series.zip", "slice.dcm"):
        file = tmp_path / name
        file.write_bytes(b"PK\x03\x04")
        answer = server.upload("new", file)
        assert answer.status_code == 400
        assert "not of a type that is taken here" in answer.json()["detail"]
