"""Whose studies are, by tables, DICOM headers and names."""

import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid  # noqa: E402

from nnunet_plugins.label.patients import Patients  # noqa: E402


def write_header(file, patient: str) -> None:
    """A DICOM file that tells a patient."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    image.is_little_endian, image.is_implicit_VR = True, False
    image.PatientID = patient
    file.parent.mkdir()
    pydicom.dcmwrite(file, image, write_like_original=False)


def test_patients_are_told_by_a_table_a_header_or_a_name(tmp_path):
    write_header(tmp_path / "series" / "1.dcm", " 17 ")
    write_header(tmp_path / "nameless" / "1.dcm", "")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/1.dcm").write_bytes(b"no DICOM")
    names = ["series", "nameless", "broken", "case7_late", "listed", "other"]
    told = Patients(tmp_path).of(names)
    assert told == dict.fromkeys(names) | {"series": "17"}
    told = Patients(tmp_path, r"^(case\d+)").of(names)
    assert told == dict.fromkeys(names) | {"series": "17", "case7_late": "case7"}
    (tmp_path / "patients.csv").write_text("name;patient\nlisted;17\nseries;18\n")
    told = Patients(tmp_path).of(names)
    assert told == dict.fromkeys(names) | {"series": "18", "listed": "17"}
    assert Patients(tmp_path).of(["../outside"]) == {"../outside": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,who\na,1\n", "columns name, of a study, and patient"),
        ("name,patient\na,1\na,2\n", "a is of two patients"),
        ("name,patient\n", "holds no rows"),
    ],
)
def test_tables_that_tell_no_patients_are_refused(tmp_path, text, words):
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        Patients(tmp_path).of(["a"])
    with pytest.raises(ValueError, match="no regular expression"):
        Patients(tmp_path / "none", "(").of(["a"])
