"""Whose studies are, by tables, DICOM headers and names."""

import json

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
        ("name,patient\na,1\na ,2\n", "a is of two patients"),
        ("name,patient\na,1\na.nii.gz,2\n", "a is of two patients"),
        ("name,patient\n", "holds no rows"),
        ("name,patient\nb,1\na, \n", "row 2 of patients.csv does not tell a patient"),
        ("name,patient\n ,1\n", "row 1 .* does not tell a patient"),
        ("name,patient\na,NaN\n", "does not tell a patient"),
        ("name,patient\na,4711\0\n", "does not tell a patient"),
        ("name,patient\na,47\u200b11\n", "does not tell a patient"),
    ],
)
def test_tables_that_tell_no_patients_are_refused(tmp_path, text, words):
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        Patients(tmp_path).of(["a"])
    with pytest.raises(ValueError, match="no regular expression"):
        Patients(tmp_path / "none", "(").of(["a"])


SPELT = [" 4711", "4711 ", "\t4711\t", "\u00a04711", "4711"]


@pytest.mark.parametrize("patient", SPELT)
@pytest.mark.parametrize("name", ["b", " b", "b ", "b.nii.gz", "b.mp4 "])
def test_spaces_and_endings_make_no_other_patient(tmp_path, name, patient):
    (tmp_path / "patients.csv").write_text(f"name,patient\na,4711\n{name},{patient}\nB,x\n")
    patients = Patients(tmp_path)
    assert patients.of(["a", "b", "B"]) == {"a": "4711", "b": "4711", "B": "x"}
    assert patients.strangers(["a", "b", "B"]) == []


def test_capitals_and_composed_letters(tmp_path):
    rows = [("a", "m\u00fc"), ("b", "mu\u0308"), ("c", "M\u00fc"), ("d", "0007"), ("e", "7")]
    table = [{"name": name, "patient": patient} for name, patient in rows]
    (tmp_path / "patients.json").write_text(json.dumps(table))
    told = Patients(tmp_path).of("abcde")
    assert told["a"] == told["b"]
    assert len(set(told.values())) == 4


@pytest.mark.parametrize(
    "value", ["7.0", "NaN", "true", "null", "[7]", '""', '"\\u0000"', '"\\ud800"']
)
def test_only_text_and_whole_numbers_of_json_tell_patients(tmp_path, value):
    file = tmp_path / "patients.json"
    file.write_text('[{"name": "a", "patient": 7}, {"name": "b", "patient": "7"}]')
    assert Patients(tmp_path).of("ab") == {"a": "7", "b": "7"}
    for row in (f'{{"name": "a", "patient": {value}}}', f'{{"name": {value}, "patient": 7}}'):
        file.write_text(f"[{row}]")
        with pytest.raises(ValueError, match=r"row 1 of patients\.json"):
            Patients(tmp_path).of("a")


@pytest.mark.parametrize("depth", [10**3, 10**5])
@pytest.mark.parametrize("row", ["{}", '[{{"name": "a", "patient": {}}}]'])
def test_deep_json_is_one_clear_error(tmp_path, depth, row):
    (tmp_path / "patients.json").write_text(row.format("[" * depth + "]" * depth))
    with pytest.raises(ValueError, match=r"patients\.json .*(too deep|no rows|does not tell)"):
        Patients(tmp_path).of("a")


def test_rows_of_studies_that_are_not_there_are_told_and_stop_nothing(tmp_path):
    (tmp_path / "patients.csv").write_text("name,patient\na.nii.gz,1\ngone,2\nsub/b,3\nb,4\n")
    patients = Patients(tmp_path)
    assert patients.of("ab") == {"a": "1", "b": "4"}
    assert patients.strangers("ab") == ["gone", "sub/b"]
    assert Patients(tmp_path / "none").strangers("ab") == []
