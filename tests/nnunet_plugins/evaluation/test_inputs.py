import json

import av
import numpy as np
import pytest
from PIL import Image

from nnunet_plugins.evaluation.inputs import classes_of, find_sources, read_labels
from nnunet_plugins.evaluation.pictures import find_pictures, read_pictures


def sources(prediction, truth, probabilities=None, frames=None, ignore=None):
    return find_sources(
        prediction, truth, probabilities=probabilities, frames=frames, ignore=ignore
    )


def read(*args, labels=None, **kwargs):
    found = sources(*args, **kwargs)
    classes = classes_of(found, labels)
    return classes, {video.name: video for video in found.read(classes)}


def test_every_format_gives_the_same_arrays(folders, videos, tmp_path, write_pngs):
    truth, prediction = videos
    pairs = {"pngs": (truth, prediction), "masks": (truth, prediction)}
    for layout in pairs:
        inner = "masks" if layout == "masks" else ""
        for whose, arrays in zip(("t", "p"), pairs[layout], strict=True):
            for name, array in arrays.items():
                write_pngs(tmp_path / layout / whose / name / inner, array * 255)
    mixed = [(folders[0], folders[1]), (folders[0], tmp_path / "pngs/t")]
    mixed += [(tmp_path / layout / "p", tmp_path / layout / "t") for layout in pairs]
    for folder_p, folder_t in mixed:
        classes, found = read(folder_p, folder_t)
        assert classes == {"1": (1,)}
        assert list(found) == ["empty", "perfect", "shifted"]
        for name, video in found.items():
            np.testing.assert_array_equal(video.truth, truth[name])
            np.testing.assert_array_equal(video.prediction, prediction[name])


def test_frames_come_in_the_order_of_their_numbers(tmp_path, write_pngs):
    frames = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((4, 5), np.uint8)
    for whose in ("p", "t"):
        write_pngs(tmp_path / whose / "v", frames)
    _, found = read(tmp_path / "p", tmp_path / "t")
    assert found["v"].truth[:, 0, 0].tolist() == list(range(12))
    assert found["v"].frame_names[:3] == ["frame0", "frame1", "frame2"]


def test_probabilities_from_nnunet_and_from_grey_pngs(folders, videos, tmp_path, write_pngs):
    truth, _ = videos
    rng = np.random.default_rng(0)
    for name, array in truth.items():
        maps = rng.integers(0, 256, array.shape).astype(np.uint8)
        write_pngs(tmp_path / "grey" / name, maps)
        (tmp_path / "npz").mkdir(exist_ok=True)
        both = np.stack([255 - maps, maps]) / np.float32(255)
        np.savez_compressed(tmp_path / "npz" / f"{name}.npz", probabilities=both)
    _, archives = read(*folders, probabilities=tmp_path / "npz")
    write = {name: [f"{i}" for i in range(len(a))] for name, a in truth.items()}
    for name, array in truth.items():  # NIfTI frames are numbered from 0
        for i, number in enumerate(write[name]):
            old = tmp_path / "grey" / name / f"frame{i}.png"
            old.rename(old.with_name(f"{number}.png"))
        assert archives[name].probability.shape == (1, *array.shape)
    _, greys = read(*folders, probabilities=tmp_path / "grey")
    for name in truth:
        np.testing.assert_allclose(archives[name].probability, greys[name].probability, atol=1e-6)


def film(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_pictures_from_images_films_and_channels(tmp_path, write_nifti, write_pngs):
    levels = np.linspace(20, 220, 6).astype(np.uint8)
    frames = np.repeat(levels[:, None, None, None] * np.ones((32, 48, 1), np.uint8), 3, axis=3)
    write_pngs(tmp_path / "a" / "frames", frames)
    write_pngs(tmp_path / "b", frames[..., 0])
    for channel in range(3):
        write_nifti(tmp_path / f"c_{channel:04d}.nii.gz", frames[..., channel] + channel)
    write_nifti(tmp_path / "one_grey.nii.gz", frames[..., 0])
    film(tmp_path / "d.avi", frames)
    found = find_pictures(tmp_path)
    assert sorted(found) == ["a", "b", "c", "d", "one_grey"]
    for name in ("a", "b", "one_grey"):
        np.testing.assert_array_equal(read_pictures(found[name]), frames)
    np.testing.assert_array_equal(read_pictures(found["c"]), frames + np.uint8([0, 1, 2]))
    assert np.abs(read_pictures(found["d"]).astype(int) - frames).max() < 12


def test_numbers_beyond_eight_bit_are_stretched(tmp_path, write_nifti):
    write_nifti(tmp_path / "v_0000.nii.gz", np.linspace(-3, 3, 512).reshape(2, 16, 16))
    pictures = read_pictures(find_pictures(tmp_path)["v"])
    assert (pictures.min(), pictures.max()) == (0, 255)


def test_classes_come_from_the_description_and_regions_cover_several(folders, tmp_path):
    path = tmp_path / "dataset.json"
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    path.write_text(json.dumps({"labels": labels}))
    assert read_labels(path, folders[0]) == labels
    assert read_labels(None, folders[0]) is None
    (folders[0] / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "polyp": 1}}))
    assert classes_of(sources(*folders), read_labels(None, folders[0])) == {"polyp": (1,)}
    assert classes_of(sources(*folders), labels) == {"whole": (1, 2), "core": (2,)}
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no 'labels'"):
        read_labels(path, folders[0])


def test_a_class_that_the_description_lacks_is_refused(folders):
    with pytest.raises(ValueError, match=r"holds class 1, which the dataset\.json lacks"):
        classes_of(sources(*folders), {"background": 0, "x": 4})


def test_classes_without_any_mask_must_be_named(tmp_path, write_nifti):
    for whose in ("p", "t"):
        write_nifti(tmp_path / whose / "v.nii.gz", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="name the classes"):
        read(tmp_path / "p", tmp_path / "t")
    assert read(tmp_path / "p", tmp_path / "t", labels={"polyp": 1})[0] == {"polyp": (1,)}


MASK = np.eye(6, dtype=np.uint8)[None].repeat(3, axis=0)


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        (MASK[:2], r"prediction has shape \(2, 6, 6\) and the truth 3 frames of 6 x 6"),
        (MASK[:, :5], r"prediction has shape \(3, 5, 6\) and the truth 3 frames of 6 x 6"),
        (MASK * 0.5, "whole class numbers"),
        (-MASK.astype(np.int16), "whole class numbers"),
        (np.where(MASK, np.nan, 0), "whole class numbers"),
        (MASK * np.int32(100_000), "classes end at 32767"),
        (np.stack([MASK, MASK], axis=-1), "4 axes"),
        (MASK + 255 * np.eye(6, dtype=np.uint8)[::-1], "255 beside"),
    ],
)
def test_masks_that_do_not_fit_are_refused_in_one_sentence(
    prediction, words, tmp_path, write_nifti
):
    write_nifti(tmp_path / "t/v.nii.gz", MASK)
    write_nifti(tmp_path / "p/v.nii.gz", prediction)
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path / "p", tmp_path / "t")
    assert "v" in str(error.value)
    assert "\n" not in str(error.value)


def test_255_can_mark_what_is_unknown(tmp_path, write_nifti):
    unknown = MASK.copy()
    unknown[0] = 255
    write_nifti(tmp_path / "t/v.nii.gz", unknown)
    write_nifti(tmp_path / "p/v.nii.gz", MASK)
    classes, found = read(tmp_path / "p", tmp_path / "t", ignore=255)
    assert classes == {"1": (1,)}
    assert (found["v"].truth[0] == 255).all()


def test_missing_videos_frames_and_folders_are_named(folders, tmp_path, write_pngs):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        sources(folders[0], tmp_path / "nowhere")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no videos"):
        sources(tmp_path / "nothing", folders[1])
    (folders[0] / "empty.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of 3 videos: empty"):
        sources(*folders)
    write_pngs(tmp_path / "p/v", MASK, names=["1", "2", "4"])
    write_pngs(tmp_path / "t/v", MASK, names=["1", "2", "3"])
    with pytest.raises(ValueError, match="v: the prediction lacks 1 frames: 3;"):
        read(tmp_path / "p", tmp_path / "t")
    write_pngs(tmp_path / "p/v", MASK, names=["1", "2", "3"])
    with pytest.raises(ValueError, match="v: the truth lacks 1 frames: 4;"):
        read(tmp_path / "p", tmp_path / "t")


def test_probabilities_and_pictures_that_do_not_fit_are_refused(tmp_path, write_nifti, write_pngs):
    for whose in ("p", "t"):
        write_nifti(tmp_path / whose / "v.nii.gz", MASK)
    folder = tmp_path / "npz"
    folder.mkdir()
    for maps, words in (
        (np.zeros((2, 2, 6, 6)), "probability map has shape"),
        (np.zeros((4, 3, 6, 6)), "k = 1 classes"),
    ):
        np.savez(folder / "v.npz", probabilities=maps)
        with pytest.raises(ValueError, match=words):
            read(tmp_path / "p", tmp_path / "t", probabilities=folder)
    (folder / "v.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="holds no array 'probabilities'"):
        read(tmp_path / "p", tmp_path / "t", probabilities=folder)
    write_pngs(tmp_path / "f/v", MASK[:, :4])
    with pytest.raises(ValueError, match="picture has shape"):
        read(tmp_path / "p", tmp_path / "t", frames=tmp_path / "f")


def test_broken_files_are_named(folders, tmp_path, write_pngs):
    file = folders[0] / "shifted.nii.gz"
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"shifted\.nii\.gz cannot be read"):
        read(*folders)
    for whose in ("p", "t"):
        write_pngs(tmp_path / whose / "v", MASK)
    (tmp_path / "p/v/frame1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"frame1\.png cannot be read"):
        read(tmp_path / "p", tmp_path / "t")
    Image.fromarray(MASK[0, :3]).save(tmp_path / "p/v/frame1.png")
    with pytest.raises(ValueError, match="a video has one size"):
        read(tmp_path / "p", tmp_path / "t")
    Image.fromarray(np.eye(6, dtype=np.uint8)[..., None] * np.uint8([1, 2, 3])).save(
        tmp_path / "p/v/frame1.png"
    )
    with pytest.raises(ValueError, match="colour image"):
        read(tmp_path / "p", tmp_path / "t")
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_pictures([tmp_path / "bad.mp4"])
