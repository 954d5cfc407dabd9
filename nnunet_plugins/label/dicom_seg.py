"""Labels as DICOM SEG, with the patient, study and images of the series that they lie on.

pydicom-seg writes it. highdicom, which is better kept, needs pydicom 3 with numpy 2, and MONAI
Label needs pydicom 2.
"""

import copy
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom_seg import MultiClassWriter
from pydicom_seg.template import from_dcmqi_metainfo

from nnunet_plugins.label.colours import colour
from nnunet_plugins.label.dicom_series import Series
from nnunet_plugins.label.scores import read_labels

TISSUE = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
"""Category and type of every segment; a bundle names its classes and has no codes for them."""
TEXT_LENGTH, NAME_LENGTH = 64, 16
"""Characters of DICOM's LO and CS."""


def write_seg(
    out: Path, series: Series, labels: Path, names: Mapping[str, int], maker: str, by_person: bool
) -> Path:
    """A DICOM SEG file of labels.

    Args:
        out: File to write.
        series: On whose grid the labels lie.
        labels: Volume of labels.
        names: Of values; others are called by their number.
        maker: What the segments were made by.
        by_person: Whether a person has finished them.

    Raises:
        ValueError: If the labels are empty, above 65535 or on another grid.
    """
    try:
        image = sitk.ReadImage(str(labels))
    except RuntimeError as error:
        raise ValueError(f"{labels.name} cannot be read as labels") from error
    series.check_grid(image)
    voxels = read_labels(labels)
    values = [int(value) for value in np.unique(voxels) if value]
    if not values:
        raise ValueError("the label is empty, and DICOM SEG holds one segment at least")
    if max(values) > np.iinfo(np.uint16).max:
        raise ValueError("DICOM SEG numbers segments up to 65535; this label has larger values")
    template = from_dcmqi_metainfo(_metainfo(values, names, maker, by_person))
    volume = series.lay(sitk.GetImageFromArray(voxels.astype(np.uint16)))
    headers = copy.deepcopy(series.headers)  # the writer changes what it is given
    dataset = MultiClassWriter(template).write(volume, headers)
    _complete(dataset, series.headers[0])
    dataset.save_as(out, write_like_original=False)
    return out


def _metainfo(
    values: list[int], names: Mapping[str, int], maker: str, by_person: bool
) -> dict[str, object]:
    """What dcmqi calls so: the series and each segment."""
    named = {value: name for name, value in names.items()}
    kind = "SEMIAUTOMATIC" if by_person else "AUTOMATIC"
    segments = [
        {
            "labelID": value,
            "SegmentLabel": named.get(value, f"label {value}")[:TEXT_LENGTH],
            "SegmentAlgorithmType": kind,
            "SegmentAlgorithmName": maker[:TEXT_LENGTH],
            "SegmentedPropertyCategoryCodeSequence": TISSUE,
            "SegmentedPropertyTypeCodeSequence": TISSUE,
            "recommendedDisplayRGBValue": list(colour(value)),
        }
        for value in values
    ]
    return {
        "ContentCreatorName": "mambamed",
        "ContentLabel": "SEGMENTATION",
        "ContentDescription": "Research, no medical device",
        "ClinicalTrialSeriesID": "1",
        "ClinicalTrialTimePointID": "1",
        "SeriesDescription": maker[:TEXT_LENGTH],
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "segmentAttributes": [segments],
    }


def _complete(dataset: pydicom.Dataset, source: pydicom.Dataset) -> None:
    """What pydicom-seg replaces and the standard takes from the images, and who wrote it."""
    dataset.FrameOfReferenceUID = source.FrameOfReferenceUID
    dataset.SpecificCharacterSet = source.get("SpecificCharacterSet") or "ISO_IR 100"
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate",
                 "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"):  # fmt: skip
        if name not in dataset:  # may be empty, but has to be there
            setattr(dataset, name, "")
    dataset.Manufacturer = "mambamed"
    dataset.ManufacturerModelName = "mambamed label"
    dataset.SoftwareVersions = version("mambamed")
    for name in ("ClinicalTrialSeriesID", "ClinicalTrialTimePointID"):
        if name in dataset:
            delattr(dataset, name)
