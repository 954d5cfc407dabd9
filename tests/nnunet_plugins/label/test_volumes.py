"""Volumes in one file and no larger than they can be; nothing else is read."""

import gzip
import resource

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_plugins.label.names import VOLUMES
from nnunet_plugins.label.uploads import check_image, check_label
from nnunet_plugins.label.volumes import check_alone, read_header

ENDINGS = pytest.mark.parametrize("ending", VOLUMES)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 6 5 4\nElementType = MET_UCHAR\n"
)
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n"
DETACHED = {
    "equals.mha": META + "ElementDataFile = {}\n",
    "colon.mha": META + "ElementDataFile  :  {}\n",
    "tight.mha": META + "ElementDataFile={}\n",
    "list.mha": META + "ElementDataFile = LIST\n{}\n",
    "returns.mha": META.replace("\n", "\r") + "ElementDataFile = {}\r",
    "commented.mha": "Comment = ElementDataFile = LOCAL\n" + META + "ElementDataFile = {}\n",
    "far.mha": (
        META
        + "Comment = ElementDataFile = LOCAL\n"
        + "Name = a\n" * 120_000
        + "ElementDataFile = {}\n"
    ),
    "twice.mha": META + "ElementDataFile = {}\nElementDataFile = LOCAL\n",
    "field.nrrd": NRRD + "data file: {}\n\n",
    "joined.nrrd": NRRD + "datafile: {}\n\n",
    "capitals.nrrd": NRRD + "Data File: {}\n\n",
    "headless.nrrd": NRRD + "data file: {}\n",
    "returns.nrrd": (NRRD + "data file: {}\n\n").replace("\n", "\r"),
}


def write(file, dtype=np.uint8, shape=(4, 5, 6)):
    voxels = np.random.default_rng(0).integers(0, 3, shape).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(file))
    return file


@ENDINGS
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_volumes_that_simpleitk_writes_are_taken(ending, dtype, tmp_path):
    file = write(tmp_path / f"a{ending}", dtype)
    check_image(file)
    check_label(file, file)
    assert read_header(file).GetSize() == (6, 5, 4)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_so_are_compressed_ones(ending, compressed, tmp_path):
    file = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.ReadImage(str(write(tmp_path / "b.nii"))), str(file), compressed)
    check_label(file, file)


@pytest.mark.parametrize("name", DETACHED)
def test_no_header_leads_to_another_file(name, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"s" * 1000)
    file = tmp_path / name
    file.write_bytes(DETACHED[name].format(secret).encode())
    with pytest.raises(ValueError, match=r"in one file|damaged"):
        check_alone(file)
    with pytest.raises(ValueError, match=r"in one file|damaged"):
        check_image(file)


def test_a_nifti_of_two_files_is_refused(tmp_path):
    content = bytearray(write(tmp_path / "a.nii").read_bytes())
    content[344:348] = b"ni1\0"
    (tmp_path / "b.nii").write_bytes(content)
    with pytest.raises(ValueError, match="in one file"):
        check_alone(tmp_path / "b.nii")


@ENDINGS
def test_another_format_under_that_name_is_refused(ending, tmp_path):
    other = ".mha" if ending != ".mha" else ".nrrd"
    file = tmp_path / f"a{ending}"
    write(tmp_path / f"b{other}").rename(file)
    with pytest.raises(ValueError, match="damaged"):
        check_alone(file)


def announce(file, size, code, bits):
    """Have a NIfTI announce another size and type of voxels."""
    opened = gzip.open if file.name.endswith(".gz") else open
    with opened(file, "rb") as stream:
        content = bytearray(stream.read())
    content[40:56] = np.array([3, *size, 1, 1, 1, 1], "<i2").tobytes()
    content[70:74] = np.array([code, bits], "<i2").tobytes()
    with opened(file, "wb") as stream:
        stream.write(content)
    return file


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_what_a_file_cannot_hold_is_refused_at_once(ending, tmp_path):
    file = announce(write(tmp_path / f"a{ending}"), (1290, 1290, 1290), 64, 64)
    with pytest.raises(ValueError, match="too short"):
        check_image(file)


def test_a_volume_that_is_too_large_is_refused_at_once(tmp_path):
    file = announce(write(tmp_path / "a.nii"), (1290, 1290, 1290), 64, 64)
    with file.open("r+b") as stream:
        stream.truncate(9 * 1290**3)  # holes take no room
    with pytest.raises(ValueError, match=r"16\.0 GiB; up to 2 GiB"):
        check_image(file)


def test_a_label_of_another_grid_is_refused_before_it_is_unpacked(tmp_path):
    image, label = write(tmp_path / "image.nii.gz"), tmp_path / "label.nii.gz"
    sitk.WriteImage(sitk.Image([400, 400, 400], sitk.sitkFloat64), str(label))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="400 x 400 x 400 voxels and its image 6 x 5 x 4"):
        check_label(label, image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB, of 500,000


@ENDINGS
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_label_that_ends_early_is_refused(ending, kept, tmp_path):
    image, label = write(tmp_path / f"i{ending}", shape=(40, 50, 60)), tmp_path / f"label{ending}"
    content = image.read_bytes()
    label.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"damaged|too short"):
        check_label(label, image)


@pytest.mark.parametrize("value", [-1, 0.5])
def test_a_label_holds_whole_numbers_from_0(value, tmp_path):
    image, label = write(tmp_path / "image.nii.gz"), tmp_path / "label.nii.gz"
    voxels = np.zeros((4, 5, 6), np.float32)
    voxels[-1, -1, -1] = value
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(label))
    with pytest.raises(ValueError, match="whole number"):
        check_label(label, image)
