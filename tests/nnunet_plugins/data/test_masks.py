import numpy as np
import pytest
from PIL import Image

from nnunet_plugins.data import LabelScheme
from nnunet_plugins.data.masks import MaskFolder, MaskVideo, read_mask

ONE, THREE = LabelScheme(("polyp",)), LabelScheme(("a", "b", "c"), sparse=True)


@pytest.mark.parametrize("on", [1, 255])
def test_one_class_is_stored_as_255_or_1(on):
    grey = np.array([[0, on]], np.uint8)
    np.testing.assert_array_equal(ONE.encode(grey, "a mask"), [[0, 1]])
    np.testing.assert_array_equal(ONE.decode(ONE.encode(grey, "a mask")), [[0, 255]])


def test_several_classes_are_their_grey_values_and_ignore_is_the_highest():
    grey = np.array([[0, 1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(THREE.decode(THREE.encode(grey, "a mask")), grey)
    assert THREE.dataset_labels == {"background": 0, "a": 1, "b": 2, "c": 3, "ignore": 4}
    assert "ignore" not in ONE.dataset_labels


@pytest.mark.parametrize(
    ("scheme", "value"), [(ONE, 7), (ONE, 254), (THREE, 4), (THREE, 255)], ids=str
)
def test_an_unknown_value_is_refused(scheme, value):
    with pytest.raises(ValueError, match=rf"here\.png holds the value {value}; .*--labels"):
        scheme.encode(np.array([[0, value]], np.uint8), "here.png")


def test_zero_one_and_255_together_mean_nothing_sure():
    with pytest.raises(ValueError, match="255"):
        ONE.encode(np.array([[0, 1, 255]], np.uint8), "a mask")


@pytest.mark.parametrize("names", [(), ("a", "a"), ("background",), ("ignore", "a")])
def test_names_that_nnunet_could_not_tell_apart_are_refused(names):
    with pytest.raises(ValueError, match="one different name"):
        LabelScheme(names)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_masks_of_any_mode_give_their_grey_value(tmp_path, mode):
    values = np.array([[0, 255], [255, 0]], np.uint8)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0] + 255 * [200, 10, 10])
    image = image if mode == "P" else image.convert(mode)
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png") > 0, values > 0)


def test_coloured_and_deep_masks_are_refused(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"red\.png is coloured"):
        read_mask(tmp_path / "red.png")
    with pytest.raises(ValueError, match=r"deep\.png is of type I;16"):
        read_mask(tmp_path / "deep.png")


def test_masks_of_a_video_are_found_by_their_number(tmp_path, draw):
    draw.frames(tmp_path, draw.video(0)[1][:2], ["case7_frame3", "case7_frame12"])
    masks = MaskFolder(tmp_path, ONE, by_number=True)
    assert masks.take("0001") is None
    assert masks.take("0003") is not None
    with pytest.raises(ValueError, match=r"1 masks in .* belong to no frame, as case7_frame12"):
        masks.check_end()


@pytest.mark.parametrize("names", [["1", "01"], ["first"]])
def test_masks_without_a_number_of_their_own_are_refused(tmp_path, draw, names):
    draw.frames(tmp_path, draw.video(0)[1][: len(names)], names)
    with pytest.raises(ValueError, match=r"names no frame|masks of one frame"):
        MaskFolder(tmp_path, ONE, by_number=True)


def test_a_lossless_video_of_masks_gives_its_classes(tmp_path, draw):
    labels = draw.video(0, classes=2)[1]
    masks = MaskVideo(draw.lossless(tmp_path / "masks.mkv", labels), THREE)
    taken = np.stack([masks.take(str(t)) for t in range(len(labels))])
    np.testing.assert_array_equal(taken, labels)
    masks.check_end()
    with pytest.raises(ValueError, match="no mask for frame 9: it has fewer frames"):
        masks.take("9")


def test_a_video_that_merges_classes_is_refused(tmp_path, draw):
    labels = draw.video(0, classes=2)[1]
    masks = MaskVideo(draw.lossless(tmp_path / "masks.mkv", labels, "yuv420p"), THREE)
    with pytest.raises(ValueError, match="yuv420p, which merges neighbouring classes"):
        masks.take("1")


def test_a_longer_video_of_masks_is_refused(tmp_path, draw):
    masks = MaskVideo(draw.lossless(tmp_path / "masks.mkv", draw.video(0)[1] * 255), ONE)
    masks.take("0001")
    with pytest.raises(ValueError, match="more frames than its video"):
        masks.check_end()
