"""Pieces of a video give what the whole gives: windows, memories, prompts, cancelled work."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_plugins.bundle.stream_inferer import StreamInferer
from nnunet_plugins.data.clips import read_clip, write_video
from nnunet_plugins.label.seeking import SeekableVideo
from nnunet_plugins.label.served import ServedBundle
from nnunet_plugins.label.turns import Turns
from nnunet_plugins.label.video.adaptation import Adaptation
from nnunet_plugins.label.video.annotate import Annotation, annotate, goes_on_at
from nnunet_plugins.label.video.drafts import Draft, ranges
from nnunet_plugins.label.video.jobs import Cancelled
from nnunet_plugins.label.video.pieces import (
    KEPT,
    Piece,
    continue_at,
    covered,
    memories,
    remembering,
    windowed,
)
from nnunet_plugins.label.video.prompts import UNLABELLED
from nnunet_plugins.video_windows import slide
from tests.bundles.conftest import draw_frames
from tests.nnunet_plugins.label.video_bundles import lively_bundle

FRAMES, SIZE = 15, (48, 64)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 15 frames, and its true classes."""
    frames, labels = draw_frames(3, FRAMES, SIZE)
    file = write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", frames)
    return file, (labels > 0).astype(np.uint8)


@pytest.fixture(scope="module", params=["vivim", "endomamba"])
def bundle(request, tmp_path_factory) -> ServedBundle:
    """A bundle of the project."""
    return ServedBundle(lively_bundle(request.param, tmp_path_factory.mktemp("bundles")))


@pytest.fixture(scope="module")
def endomamba(tmp_path_factory) -> ServedBundle:
    return ServedBundle(lively_bundle("endomamba", tmp_path_factory.mktemp("bundles")))


def asked(bundle, file, start=0, end=FRAMES, prompt=None, how=None) -> Annotation:
    piece = Piece(start, end, FRAMES)
    return Annotation(
        bundle, bundle.shipped, SeekableVideo(file), piece, prompt or {}, how or Adaptation(3)
    )


def made(wanted: Annotation, folder, advance=lambda frames: None):
    """A draft that has the piece."""
    draft = Draft(folder, wanted.key)
    annotate(wanted, draft, Turns(folder / "turns"), advance)
    return draft


def labels_of(draft: Draft) -> np.ndarray:
    """The label (t, h, w) that a draft writes."""
    file = draft.folder / "label.nii.gz"
    draft.write(file, SIZE)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_frames_are_those_of_the_command_line(clip):
    video = SeekableVideo(clip[0])
    frames = np.stack([video.frame(i) for i in range(len(video))])
    assert np.array_equal(frames, read_clip(clip[0]).frames)


@pytest.mark.parametrize("total", [1, 5, 6, 9, 17])
@pytest.mark.parametrize(("length", "overlap"), [(5, 0.5), (4, 0.0), (6, 0.7)])
def test_windows_over_a_piece_are_those_of_the_whole(total, length, overlap):
    values = torch.randn(total, 1, 1, 1, generator=torch.Generator().manual_seed(total))

    def predict(clip):  # depends on all frames of the window and on the place in it
        return clip.cumsum(1) * clip.mean()

    def stream(frames, network):
        return slide(frames, predict, length, overlap)

    inferer = SimpleNamespace(length=length, overlap=overlap, stream=stream)
    whole = list(stream(values, None))
    for start in range(total):
        for end in range(start + 1, total + 1):
            piece = Piece(start, end, total)
            found = [
                x for batch in windowed(inferer, None, values.__getitem__, piece) for x in batch
            ]
            assert torch.equal(torch.stack(found), torch.stack(whole[start:end]))
            first, last = covered(piece, length, overlap)
            assert last - first <= len(piece) + 2 * length or last == total


def test_a_whole_video_is_what_the_server_gives_for_it(bundle, clip, tmp_path):
    expected = bundle.segment(clip[0], tmp_path / "out" / "labels", bundle.shipped)
    draft = made(asked(bundle, clip[0]), tmp_path / "draft")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(expected.file)))
    assert np.array_equal(labels_of(draft), labels)
    assert 0.1 < labels.mean() < 0.9


@pytest.mark.parametrize("cuts", [(8,), (1, 5, 13)])
def test_pieces_are_the_whole(bundle, clip, tmp_path, cuts):
    whole = labels_of(made(asked(bundle, clip[0]), tmp_path / "whole"))
    for start, end in zip((0, *cuts), (*cuts, FRAMES), strict=True):
        draft = made(asked(bundle, clip[0], start, end), tmp_path / "pieces")
    assert np.array_equal(labels_of(draft), whole)


def test_logits_go_on_from_a_file(endomamba, tmp_path):
    network = endomamba.network(endomamba.shipped)
    inferer = StreamInferer(chunk=4)
    frames = torch.rand(FRAMES, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    whole = torch.stack(list(inferer.stream(frames, network)))
    found, start = [], 0
    for end in (4, 8, 12, FRAMES):
        stream = remembering(inferer, network, network, start, tmp_path)
        assert (stream.origin, stream.next) == (0, start)
        found += stream.step(frames.__getitem__, Piece(start, end, FRAMES))
        stream.save(tmp_path)
        start = end
    assert torch.equal(torch.stack(found), whole)
    inside = remembering(inferer, network, network, 6, tmp_path)
    assert (inside.origin, inside.next) == (0, 4)
    part = torch.stack(inside.step(frames.__getitem__, Piece(6, 7, FRAMES)))
    assert torch.equal(part, whole[6:7])
    anew = remembering(inferer, network, network, 6, tmp_path / "empty")
    assert (anew.origin, anew.next) == (6, 6)
    other = torch.stack(anew.step(frames.__getitem__, Piece(6, 9, FRAMES)))
    assert (other - whole[6:9]).abs().max() > 1e-3  # memory matters


def test_memories_are_few_and_bad_ones_go(endomamba, tmp_path):
    network = endomamba.network(endomamba.shipped)
    inferer = StreamInferer(chunk=1)
    frames = torch.rand(FRAMES, 3, 32, 32)
    stream = remembering(inferer, network, network, 0, tmp_path)
    for _ in range(KEPT + 3):
        stream.step(frames.__getitem__, Piece(0, FRAMES, FRAMES))
        stream.save(tmp_path)
    assert len(memories(tmp_path)) == KEPT
    last = KEPT + 3
    assert continue_at(tmp_path, FRAMES, 1) == last
    assert continue_at(tmp_path, last - 1, 1) == last - 1
    (tmp_path / f"memory_00000000_{last:08d}" / "member_0.safetensors").write_bytes(b"broken")
    assert remembering(inferer, network, network, last, tmp_path).origin == last
    assert continue_at(tmp_path, FRAMES, 1) == last - 1


def test_what_other_weights_made_is_not_continued(bundle, clip, tmp_path):
    draft = made(asked(bundle, clip[0], 0, 8), tmp_path / "draft")
    weights = tmp_path / "other.pt"
    content = torch.load(bundle.shipped, weights_only=True)
    torch.save({k: v * 1.01 if v.is_floating_point() else v for k, v in content.items()}, weights)
    wanted = Annotation(bundle, weights, SeekableVideo(clip[0]), Piece(8, 12, FRAMES))
    other = Draft(tmp_path / "draft", wanted.key)
    assert (draft.done(), other.done()) == (list(range(8)), [])
    annotate(wanted, other, Turns(tmp_path))
    assert ranges(other.done()) == [(8, 12)]
    assert draft.done() == []
    assert (labels_of(other)[:8] == UNLABELLED).all()


def test_weights_that_change_while_a_job_waits_end_it(endomamba, clip, tmp_path):
    wanted = asked(endomamba, clip[0], 0, 4)
    draft = Draft(tmp_path / "draft", "those of before")
    with pytest.raises(ValueError, match="ask again"):
        annotate(wanted, draft, Turns(tmp_path))
    assert not draft.folder.exists()


def test_a_changed_video_is_another_one(bundle, clip, tmp_path):
    copy = tmp_path / "clip.mp4"
    shutil.copy(clip[0], copy)
    before = asked(bundle, copy).key
    shutil.copy(clip[0], tmp_path / "new.mp4")
    (tmp_path / "new.mp4").replace(copy)
    assert asked(bundle, copy).key != before


def test_cancelled_work_is_kept_and_goes_on(bundle, clip, tmp_path):
    whole = labels_of(made(asked(bundle, clip[0]), tmp_path / "whole"))
    seen = []

    def stop(frames):
        seen.append(frames)
        if sum(seen) >= 8:
            raise Cancelled

    wanted = asked(bundle, clip[0])
    draft = Draft(tmp_path / "draft", wanted.key)
    with pytest.raises(Cancelled):
        annotate(wanted, draft, Turns(tmp_path), stop)
    done = len(draft.done())
    assert done == sum(seen) < FRAMES
    assert goes_on_at(bundle, draft) == done
    annotate(asked(bundle, clip[0], done), draft, Turns(tmp_path))
    assert np.array_equal(labels_of(draft), whole)


def test_prompted_frames_keep_their_masks_and_others_learn(bundle, clip, tmp_path):
    file, truth = clip
    prompt = {0: truth[0], 7: np.ones_like(truth[7])}
    before = {k: v.clone() for k, v in bundle.network(bundle.shipped).state_dict().items()}
    plain = labels_of(made(asked(bundle, file), tmp_path / "plain"))
    how = Adaptation(4, 1e-3)
    first = labels_of(made(asked(bundle, file, prompt=prompt, how=how), tmp_path / "first"))
    again = labels_of(made(asked(bundle, file, prompt=prompt, how=how), tmp_path / "again"))
    assert np.array_equal(first, again)
    for index, mask in prompt.items():
        assert np.array_equal(first[index], mask)
    others = [i for i in range(FRAMES) if i not in prompt]
    assert (first[others] != plain[others]).any()
    after = bundle.network(bundle.shipped).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for start, end in ((0, 11), (11, FRAMES)):
        wanted = asked(bundle, file, start, end, prompt, how)
        draft = made(wanted, tmp_path / "pieces")
    assert np.array_equal(labels_of(draft), first)


@pytest.mark.parametrize("calls", [3, 24, 55, 90])
def test_adaptation_ends_between_two_steps_and_keeps_no_turn(endomamba, clip, tmp_path, calls):
    turns, had = Turns(tmp_path / "turns"), []

    def stop(frames):
        had.append(turns.state()["running"])
        if len(had) == calls:
            raise Cancelled

    wanted = asked(endomamba, clip[0], prompt={0: clip[1][0]}, how=Adaptation(1000))
    draft = Draft(tmp_path / "draft", wanted.key)
    with pytest.raises(Cancelled):
        annotate(wanted, draft, turns, stop)
    assert len(had) == calls
    assert had == [index % 2 for index in range(calls)]  # asked before and in each turn
    assert turns.state() == {"running": 0, "waiting": 0}
    assert draft.done() == []


def test_without_steps_a_prompt_is_only_kept(endomamba, clip, tmp_path):
    file, truth = clip
    plain = labels_of(made(asked(endomamba, file, 0, 9), tmp_path / "plain"))
    wanted = asked(endomamba, file, 0, 9, {2: truth[2]}, Adaptation(0))
    labels = labels_of(made(wanted, tmp_path / "draft"))
    assert np.array_equal(np.delete(labels, 2, 0), np.delete(plain, 2, 0))
    assert np.array_equal(labels[2], truth[2])


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 3), (5, 2), (0, FRAMES + 1)])
def test_pieces_outside_the_video_are_refused(start, end):
    with pytest.raises(ValueError, match="no piece of a video of 15"):
        Piece(start, end, FRAMES)
