import json
import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from pretrain.videos import (
    ClipSettings,
    FrameCache,
    VideoClips,
    find_videos,
    first_pass,
    open_videos,
)
from pretrain.videos.open_videos import OpenVideos
from tests.pretrain.videos.generated import decoded, moving, write_frames, write_video

SETTINGS = ClipSettings(frames=4, stride=3, size=(24, 32))
PLAIN = {"flip": False, "colour": 0.0, "scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three videos of 60 frames: a file, another format, a folder."""
    folder = tmp_path_factory.mktemp("corpus")
    write_video(folder / "videos/a.mp4", moving(60, seed=0), g="50", bf="3")
    write_video(folder / "videos/b.avi", moving(60, seed=1), "mpeg4", g="50")
    write_frames(folder / "videos/c", moving(60, seed=2))
    return folder


@pytest.fixture
def findings(corpus):
    return first_pass(find_videos(corpus / "videos"), corpus / "cache")


def epoch(dataset, number, **loader):
    dataset.set_epoch(number)
    return list(DataLoader(dataset, batch_size=None, **loader))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[name], b[name])
        for a, b in zip(first, second, strict=True)
        for name in ("clip", "number", "seed")
    )


def test_a_clip(findings):
    clips = VideoClips(findings, SETTINGS)
    assert len(clips) == 3 * (60 // 10)
    sample = clips[7]
    assert (sample["clip"].shape, sample["clip"].dtype) == ((3, 4, 24, 32), torch.float32)
    assert sample["clip"].is_contiguous()
    assert 0 <= sample["clip"].min() < 0.3
    assert 0.6 < sample["clip"].max() <= 1
    assert int(sample["number"]) == 7
    assert sample["seed"].dtype == torch.int64
    assert default_collate([clips[0], clips[1]])["number"].tolist() == [0, 1]
    with pytest.raises(IndexError, match="clip 18 of 18"):
        clips[18]


def test_a_plain_clip_holds_the_frames_it_says(findings):
    clips = VideoClips(findings, ClipSettings(frames=4, stride=3, size=(48, 64), **PLAIN))
    for index in range(len(clips)):
        place = clips.place(index)
        assert np.diff(place.numbers).tolist() == [3, 3, 3]
        path = Path(place.kept.video.path)
        want = moving(60, seed=2) if path.is_dir() else decoded(path)
        clip = (clips[index]["clip"] * 255).permute(1, 2, 3, 0).numpy()
        np.testing.assert_allclose(clip, np.stack([want[n] for n in place.numbers]), atol=1e-3)


def test_every_epoch_is_new_and_repeats(findings):
    clips = VideoClips(findings, SETTINGS)
    first, second = epoch(clips, 0), epoch(clips, 1)
    assert not any(same([a], [b]) for a, b in zip(first, second, strict=True))
    assert len({int(sample["seed"]) for sample in first + second}) == 36
    clips.set_epoch(0)
    backwards = [clips[index] for index in reversed(range(len(clips)))]
    assert same(first, backwards[::-1])


def test_another_seed_draws_other_clips(findings):
    clips = VideoClips(findings, SETTINGS)
    other = VideoClips(findings, ClipSettings(frames=4, stride=3, size=(24, 32), seed=1))
    assert not any(same([a], [b]) for a, b in zip(epoch(clips, 0), epoch(other, 0), strict=True))


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
@pytest.mark.parametrize("cached", [False, True])
def test_living_workers_draw_what_one_process_draws(context, workers, cached, findings, tmp_path):
    options = {"cache": tmp_path, "side": 30} if cached else {}
    clips = VideoClips(findings, SETTINGS, **options)
    clips[0]  # a reader is open when workers are forked
    loader = DataLoader(
        clips,
        batch_size=None,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    for number in (0, 3):
        clips.set_epoch(number)
        assert same(list(loader), epoch(clips, number))


def test_frames_of_a_clip_are_cut_turned_and_coloured_alike(tmp_path):
    """Of a video whose frames are equal but for one pixel, a clip's frames are equal too."""
    frames = np.repeat(moving(1, (96, 128)), 30, axis=0)
    write_frames(tmp_path / "videos/a", frames)
    for number, file in enumerate(sorted((tmp_path / "videos/a").iterdir())):
        frames[0, :8] = np.random.default_rng(number).integers(0, 255, (8, 128, 3))  # not frozen
        Image.fromarray(frames[0]).save(file)
    findings = first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache")
    clips = VideoClips(findings, ClipSettings(frames=3, stride=2, size=(24, 32), clips=30))
    shown = []
    for sample in epoch(clips, 0):
        below = sample["clip"][:, :, 8:]
        torch.testing.assert_close(below[:, 0], below[:, 1], atol=0.02, rtol=0)
        torch.testing.assert_close(below[:, 0], below[:, 2], atol=0.02, rtol=0)
        shown.append(below[:, 0])
    assert min(float((a - b).abs().mean()) for a in shown for b in shown if a is not b) > 0.02


def test_flips_and_colours_are_as_asked(tmp_path):
    write_frames(tmp_path / "videos/a", moving(12, (48, 64)))
    findings = first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache")
    plain = {**PLAIN, "frames": 12, "stride": 1, "size": (48, 64), "clips": 40}
    want = VideoClips(findings, ClipSettings(**plain))[0]["clip"]
    flips = VideoClips(findings, ClipSettings(**{**plain, "flip": True}))
    flipped = [torch.equal(flips[i]["clip"], want.flip(-1)) for i in range(40)]
    assert all(f or torch.equal(flips[i]["clip"], want) for i, f in enumerate(flipped))
    assert 10 <= sum(flipped) <= 30
    colours = VideoClips(findings, ClipSettings(**{**plain, "colour": 0.2}))
    means = torch.stack([colours[i]["clip"].mean() for i in range(40)]) / want.mean()
    assert 0.75 < means.min() < 0.9
    assert 1.05 < means.max() < 1.25


def test_borders_are_never_seen(tmp_path):
    frames = np.zeros((30, 96, 128, 3), np.uint8)
    frames[:, 16:80, 32:120] = moving(30, (64, 88))
    write_frames(tmp_path / "videos/a", frames)
    findings = first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache")
    for options in ({}, {"cache": tmp_path / "cache", "side": 48}):
        clips = VideoClips(findings, ClipSettings(4, 1, (24, 32), colour=0, clips=20), **options)
        assert min(float(sample["clip"].min()) for sample in epoch(clips, 0)) > 0.1


def write_mix(folder, weights):
    for name, count, length in (("x", 3, 40), ("y", 1, 40)):
        for number in range(count):
            write_video(folder / name / f"{number}.mp4", moving(length, seed=number))
    entries = [
        {"path": name, "source": name} | ({"weight": weight} if weight else {})
        for name, weight in zip("xy", weights, strict=True)
    ]
    (folder / "mix.json").write_text(json.dumps(entries))
    return first_pass(find_videos(folder / "mix.json"), folder / "cache")


@pytest.mark.parametrize(
    ("weights", "share"), [((None, None), 1 / 4), ((1, 1), 1 / 2), ((1, 4), 4 / 5), ((3, 1), 1 / 4)]
)
def test_sources_are_drawn_as_they_weigh(weights, share, tmp_path):
    findings = write_mix(tmp_path, weights)
    clips = VideoClips(findings, ClipSettings(frames=4, stride=3, size=(8, 8), clips=120))
    for number in range(3):
        clips.set_epoch(number)
        drawn = Counter(clips.place(i).kept.video.source for i in range(120))
        assert abs(drawn["y"] - 120 * share) <= 1
        videos = Counter(clips.place(i).kept.video.path for i in range(120))
        of_x = [n for path, n in videos.items() if "/x/" in path]
        assert len(of_x) == 3
        assert max(of_x) - min(of_x) <= 2


def test_clips_lie_in_usable_stretches_and_begin_anywhere_in_them(tmp_path):
    frames = moving(100)
    frames[20:30] = frames[60:70] = 0
    write_frames(tmp_path / "videos/a", frames)
    findings = first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache")
    clips = VideoClips(findings, ClipSettings(frames=4, stride=4, size=(8, 8), clips=500))
    starts = {clips.place(i).numbers[0] for i in range(500)}
    assert starts == {*range(0, 8), *range(30, 48), *range(70, 88)}


def test_the_stride_follows_the_rate(tmp_path):
    write_video(tmp_path / "videos/a.mp4", moving(40), fps=50)
    write_video(tmp_path / "videos/b.mp4", moving(40), fps=10)
    write_frames(tmp_path / "videos/c", moving(40))
    findings = first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache")
    clips = VideoClips(findings, ClipSettings(frames=3, stride=6, size=(8, 8), fps=10, clips=30))
    places = [clips.place(i) for i in range(30)]
    strides = {Path(p.kept.video.path).stem: p.numbers[1] - p.numbers[0] for p in places}
    assert strides == {"a": 5, "b": 1, "c": 6}


def test_videos_shorter_than_a_clip_are_left_out_and_only_such_are_refused(tmp_path):
    write_video(tmp_path / "videos/long.mp4", moving(20))
    write_video(tmp_path / "videos/short.mp4", moving(9))
    findings = first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache")
    clips = VideoClips(findings, SETTINGS)
    assert {clips.place(i).kept.video.path[-8:] for i in range(len(clips))} == {"long.mp4"}
    (bad,) = clips.left_out()
    assert bad.reason == (
        "its longest usable stretch has 9 frames, and a clip of 4 frames at stride 3 needs 10"
    )
    with pytest.raises(ValueError, match=r"all 2 videos are shorter than a clip; .*long\.mp4"):
        VideoClips(findings, ClipSettings(frames=16, stride=4))


def test_a_video_changed_or_gone_since_the_first_pass_is_an_error(tmp_path):
    path = write_video(tmp_path / "videos/a.mp4", moving(20))
    findings = first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache")
    os.utime(path, ns=(0, 0))
    with pytest.raises(RuntimeError, match="changed since the first pass"):
        VideoClips(findings, SETTINGS)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.mp4"):
        VideoClips(findings, SETTINGS)[0]


def test_few_videos_stay_open_and_copies_open_their_own(findings):
    readers = OpenVideos(2)
    first = readers.get(findings.kept[0])
    assert readers.get(findings.kept[0]) is first
    closed = []
    first.close = lambda: closed.append(True)
    readers.get(findings.kept[1])
    readers.get(findings.kept[2])
    assert closed
    assert len(readers) == 2
    copy = pickle.loads(pickle.dumps(readers))
    assert (len(copy), copy.most) == (0, 2)


def test_memory_is_bounded_on_many_short_videos(tmp_path):
    """Thirty videos, of which four are open at any time; frames are not kept."""
    for number in range(30):
        write_video(tmp_path / f"videos/{number}.mp4", moving(24, (96, 128), seed=number))
    videos = find_videos(tmp_path / "videos")
    tracemalloc.start()
    findings = first_pass(videos, tmp_path / "cache", workers=2)
    in_pass = tracemalloc.get_traced_memory()[1]
    clips = VideoClips(findings, ClipSettings(4, 3, (24, 32)), open_videos=4)
    tracemalloc.reset_peak()
    before, descriptors = tracemalloc.get_traced_memory()[0], len(os.listdir("/proc/self/fd"))
    for index in range(len(clips)):
        clips[index]
        assert len(clips._open) <= 4
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert in_pass < 4e6  # a frame is 37 kB, a video 0.9 MB, all 27 MB
    assert grown < 2e6
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 4


def test_with_a_cache_every_video_is_decoded_once(findings, tmp_path, monkeypatch):
    clips = VideoClips(findings, SETTINGS, cache=tmp_path, side=30)
    first = epoch(clips, 0)
    monkeypatch.delattr(open_videos, "open_reader")
    assert same(epoch(clips, 0), first)
    epoch(clips, 1)
    again = VideoClips(findings, SETTINGS, cache=tmp_path, side=30)
    assert same(epoch(again, 0), first)


def test_cached_frames_are_those_of_the_video_cut_and_shrunk(tmp_path):
    frames = np.zeros((40, 96, 128, 3), np.uint8)
    frames[:, 16:80, 32:120] = moving(40, (64, 88))
    frames[10:20] = 0
    write_frames(tmp_path / "videos/a", frames)
    findings = first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache")
    cache = FrameCache(tmp_path / "cache", 32)
    cache.fill(findings)
    stored = cache.open(findings.kept[0])
    assert (stored.shape, stored.dtype) == ((30, 32, 44, 3), np.uint8)
    assert isinstance(stored, np.memmap)
    large = FrameCache(tmp_path / "cache", 200).open(findings.kept[0])
    np.testing.assert_array_equal(large, frames[[*range(10), *range(20, 40)], 16:80, 32:120])


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(findings, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    clips = VideoClips(findings, SETTINGS, cache=tmp_path, side=30)
    with pytest.raises(OSError, match="the disk of the cache is full; free space"):
        clips[0]
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.undo()
    assert clips[0]["clip"].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"size": (8, 0)}, "size is"),
        ({"size": (8, 8, 8)}, "size is"),
        ({"scale": (0.9, 0.5)}, "scale is"),
        ({"ratio": (0, 1)}, "ratio is"),
        ({"colour": 1}, "colour is 1"),
        ({"fps": 0}, "fps is 0"),
        ({"clips": 0}, "clips is 0"),
    ],
)
def test_wrong_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ClipSettings(**options)


def test_settings_survive_json():
    settings = ClipSettings(size=(8, 9), fps=5.0)
    assert ClipSettings(**json.loads(json.dumps(settings.plain()))) == settings


def test_real_videos(shared, tmp_path):
    findings = first_pass(find_videos(shared / "data/video_unlabelled"), tmp_path)
    clips = VideoClips(findings, ClipSettings(size=(64, 64), clips=24))
    assert len(clips.left_out()) == 7  # 35 and 12 frames; a clip spans 61
    for sample in epoch(clips, 0, num_workers=1):
        assert sample["clip"].shape == (3, 16, 64, 64)
        assert sample["clip"].std() > 0.05
        assert (sample["clip"][:, 0] - sample["clip"][:, -1]).abs().mean() > 0.003
