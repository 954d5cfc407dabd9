"""Labels of whole videos in files: as SimpleITK writes them, in the memory of a few frames."""

import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_plugins.label.video.drafts import Draft
from nnunet_plugins.label.video.label_files import LONGEST, LabelFrames, check_size, write_volume
from nnunet_plugins.label.video.prompts import UNLABELLED

SIZE = (7, 12, 20)
LARGE = (256, 256)


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 4, SIZE, dtype=np.uint8)


def peak_of(act) -> int:
    """Bytes that something has in memory at most."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("frames", [1, 2, SIZE[0]])
def test_a_label_is_what_simpleitk_makes_of_all_its_frames(tmp_path, labels, frames):
    made, expected = tmp_path / "made.nii.gz", tmp_path / "expected.nii.gz"
    write_volume(made, iter(labels[:frames]), (frames, *SIZE[1:]))
    sitk.WriteImage(sitk.GetImageFromArray(labels[:frames]), str(expected))
    one, two = sitk.ReadImage(str(made)), sitk.ReadImage(str(expected))
    assert np.array_equal(sitk.GetArrayFromImage(one), labels[:frames])
    for fact in ("PixelID", "Size", "Spacing", "Origin", "Direction"):
        assert getattr(one, f"Get{fact}")() == getattr(two, f"Get{fact}")(), fact
    for key in ("qform_code", "sform_code", "xyzt_units", "dim[0]", "vox_offset"):
        assert float(one.GetMetaData(key)) == float(two.GetMetaData(key)), key


def test_a_long_draft_is_written_and_read_in_the_memory_of_a_few_frames(tmp_path):
    draft, file = Draft(tmp_path / "draft", "key"), tmp_path / "label.nii.gz"
    draft.begin()
    mask = np.zeros(LARGE, np.uint8)
    peaks = []
    for frames in (20, 200):
        for index in range(0, frames, 2):  # every other frame is a gap
            mask[index % LARGE[0]] = 1 + index % 3
            draft.put(index, mask)
        draft.put(frames, mask)
        peaks.append(peak_of(lambda: draft.write(file, LARGE)))
        peaks.append(peak_of(lambda: [frame.sum() for frame in LabelFrames(file)]))
    assert max(peaks) < 20 * mask.nbytes
    assert peaks[2] < peaks[0] + 3 * mask.nbytes
    assert peaks[3] < peaks[1] + 3 * mask.nbytes
    found = LabelFrames(file)
    assert found.size == (201, *LARGE)
    assert np.array_equal(found[200], mask)
    assert (found[101] == UNLABELLED).all()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_frames_are_read_from_every_file_that_is_taken(tmp_path, labels, ending, kind):
    file = tmp_path / f"label{ending}"
    image = sitk.GetImageFromArray(labels.astype(kind))
    image.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0))
    sitk.WriteImage(image, str(file))
    found = LabelFrames(file)
    assert (found.size, len(found)) == (SIZE, SIZE[0])
    assert np.array_equal(np.stack(list(found)), labels)
    assert np.array_equal(found[3], labels[3])


def test_files_that_are_no_labels_of_frames_are_refused(tmp_path, labels):
    file = tmp_path / "label.nii.gz"
    write_volume(file, iter(labels), SIZE)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        list(LabelFrames(file))
    file.write_bytes(b"no volume")
    with pytest.raises(ValueError, match="cannot be read"):
        LabelFrames(file)
    colours = sitk.GetImageFromArray(np.zeros((*SIZE, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(file))
    with pytest.raises(ValueError, match="one number a voxel"):
        LabelFrames(file)


def test_other_frames_than_announced_are_refused(tmp_path, labels):
    file = tmp_path / "label.nii.gz"
    with pytest.raises(ValueError, match="7 frames came and 8"):
        write_volume(file, iter(labels), (8, *SIZE[1:]))
    with pytest.raises(ValueError, match="frame 0 is"):
        write_volume(file, iter(labels[:, 1:]), SIZE)


def test_the_longest_label_is_read_by_simpleitk_and_a_longer_one_refused(tmp_path):
    file, frame = tmp_path / "label.nii.gz", np.ones((1, 2), np.uint8)
    write_volume(file, (frame for _ in range(LONGEST)), (LONGEST, 1, 2))
    assert sitk.ReadImage(str(file)).GetSize() == (2, 1, LONGEST)
    for refuses in (
        lambda: check_size((1, LONGEST + 1, 1)),
        lambda: write_volume(tmp_path / "longer.nii.gz", iter(()), (LONGEST + 1, 1, 2)),
    ):
        with pytest.raises(ValueError, match=r"32768.* pixels, and a NIfTI file holds 32767"):
            refuses()
    assert not (tmp_path / "longer.nii.gz").exists()
