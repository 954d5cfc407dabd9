"""Bundles of clips that show every so manyth frame, streamed as they were trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_plugins.stream.network import StreamBundle
from tests.nnunet_plugins.stream.conftest import frames_of, pictures, write_bundle, write_clip
from tests.nnunet_plugins.stream.test_command import masks_in, stream


def with_stride(folder: Path, file: str, stride: object) -> Path:
    path = write_bundle(folder) / "configs" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stride": stride}))
    return folder


@pytest.fixture(scope="module", params=["inference.json", "dataset.json"])
def strided(tmp_path_factory, request) -> Path:
    """The bundles of classes say it in the one, nnU-Net's datasets of videos in the other."""
    return with_stride(tmp_path_factory.mktemp("bundles") / "strided", request.param, 3)


def test_every_third_frame_is_seen_and_its_answer_kept(clip, strided, tmp_path, capsys):
    masks, out, report = tmp_path / "masks", tmp_path / "out.mp4", tmp_path / "report.json"
    assert stream(clip, strided, masks=masks, out=out, json=report) == 0
    figures = json.loads(report.read_text())
    assert (figures["stride"], figures["frames"], figures["next_index"]) == (3, 4, 4)
    assert figures["frames"] + figures["repeated"] == figures["arrived"] == 10
    assert "4 frames, 1 of 3, at" in capsys.readouterr().out
    assert len(frames_of(out)) == 10
    found = list(masks_in(masks).values())
    assert all(np.array_equal(found[i], found[i - i % 3]) for i in range(10))
    prepared = StreamBundle(strided)
    seen = torch.cat([prepared.prepare(frame) for frame in frames_of(clip)[::3]])
    with torch.no_grad():
        expected = 255 * prepared.network(seen.movedim(0, 1)[None])[0].argmax(0).numpy()
    for mask, wanted in zip(found[::3], expected, strict=True):
        assert (mask != wanted).mean() < 1e-2


@pytest.mark.parametrize(("every", "answers"), [(1, 10), (4, 3), (100, 1)])
def test_the_command_line_goes_before_the_bundle(clip, strided, tmp_path, every, answers):
    report = tmp_path / "report.json"
    assert stream(clip, strided, json=report, stride=every) == 0
    figures = json.loads(report.read_text())
    assert (figures["stride"], figures["frames"]) == (every, answers)


def test_a_limit_counts_answers_and_ends_at_once(clip, strided, tmp_path):
    report = tmp_path / "report.json"
    assert stream(clip, strided, json=report, max_frames=2) == 0
    figures = json.loads(report.read_text())
    assert (figures["frames"], figures["repeated"]) == (2, 2)


def test_frames_that_a_live_source_drops_count_too(strided, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pictures(30), fps=60)
    report = tmp_path / "report.json"
    assert stream(clip, strided, json=report, live=True) == 0
    figures = json.loads(report.read_text())
    assert figures["frames"] + figures["repeated"] + figures["dropped"] == 30
    assert figures["frames"] <= 10


@pytest.mark.parametrize("number", [0, "four"])
def test_bundles_whose_stride_is_none_are_refused(clip, tmp_path, capsys, number):
    bundle = with_stride(tmp_path / "bundle", "inference.json", number)
    assert stream(clip, bundle) == 1
    assert f"stride {number!r} of the bundle is none" in capsys.readouterr().err


def test_no_stride_is_refused(clip, strided, capsys):
    assert stream(clip, strided, stride=0) == 1
    assert "--stride 0 is none; give at least 1" in capsys.readouterr().err


def test_sizes_and_strides_may_refer_to_other_entries(clip, tmp_path):
    file = write_bundle(tmp_path / "bundle", "phase", plan=False) / "configs" / "inference.json"
    content = json.loads(file.read_text())
    content |= {"image_size": content["network_def"]["image_size"], "stride": "$4 // 2"}
    content["network_def"]["image_size"] = "@image_size"
    file.write_text(json.dumps(content))
    bundle = StreamBundle(tmp_path / "bundle")
    assert (bundle.image_size, bundle.stride) == ((32, 48), 2)
    assert stream(clip, tmp_path / "bundle") == 0
