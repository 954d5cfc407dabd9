import errno
import gc
import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pretrain.volumes import (
    Preparation,
    VolumeCache,
    VolumeCrops,
    cache,
    find_scans,
    first_pass,
    reading,
)
from tests.pretrain.volumes.phantom import blob

PATCH = (8, 10, 12)
PREPARATION = Preparation(orientation=None, spacing=None)


@pytest.fixture
def findings(write, tmp_path):
    for seed in range(3):
        write(f"scans/{seed}.nii.gz", blob(seed=seed))
    return first_pass(find_scans(tmp_path / "scans"), PREPARATION)


@pytest.fixture
def crops(findings, tmp_path):
    return VolumeCrops(findings, PATCH, cache=tmp_path / "cache", crops_per_volume=2)


def epoch(dataset, number, **loader):
    dataset.set_epoch(number)
    return list(DataLoader(dataset, batch_size=None, **loader))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a["volume"], b["volume"]) and torch.equal(a["seed"], b["seed"])
        for a, b in zip(first, second, strict=True)
    )


def test_a_crop_and_its_seed(crops):
    assert len(crops) == 6
    sample = crops[0]
    assert sample["volume"].shape == (1, *PATCH)
    assert sample["volume"].dtype == torch.float32
    assert sample["volume"].max() > 0.5
    assert (sample["seed"].shape, sample["seed"].dtype) == ((), torch.int64)
    with pytest.raises(IndexError, match="crop 6 of 6"):
        crops[6]


def test_every_epoch_is_new_and_repeats(crops):
    first, second = epoch(crops, 0), epoch(crops, 1)
    assert not any(same([a], [b]) for a, b in zip(first, second, strict=True))
    assert len({int(sample["seed"]) for sample in first + second}) == 12
    assert same(epoch(crops, 0), first)


def test_another_seed_draws_other_crops(findings, crops, tmp_path):
    other = VolumeCrops(findings, PATCH, cache=tmp_path / "cache", crops_per_volume=2, seed=1)
    assert not any(same([a], [b]) for a, b in zip(epoch(crops, 0), epoch(other, 0), strict=True))


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_living_workers_draw_what_one_process_draws(crops, context, workers):
    crops[0]  # ITK's threads run before workers are forked
    loader = DataLoader(
        crops,
        batch_size=None,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    for number in (0, 3, 1):
        crops.set_epoch(number)
        assert same(list(loader), epoch(crops, number))


def test_the_second_epoch_reads_no_scan(crops, findings, tmp_path, monkeypatch):
    first = epoch(crops, 0)
    monkeypatch.delattr(cache, "read_channels")
    shutil.rmtree(tmp_path / "scans")
    epoch(crops, 1)
    again = VolumeCrops(findings, PATCH, cache=tmp_path / "cache", crops_per_volume=2)
    assert same(epoch(again, 0), first)


def test_centres_lie_in_the_foreground(write, tmp_path):
    volume = np.full((30, 30, 30), -1000, np.int16)
    volume[2, 3, 4], volume[20, 21, 22] = 200, 250
    write("scans/a.nii", volume)
    findings = first_pass(find_scans(tmp_path / "scans"), Preparation(spacing=None, crop=False))
    crops = VolumeCrops(findings, (5, 5, 5), cache=tmp_path / "cache", crops_per_volume=40)
    bright = [int((crops[i]["volume"] > 0).sum()) for i in range(40)]
    assert set(bright) == {1}
    peaks = {round(float(crops[i]["volume"].max()), 2) for i in range(40)}
    assert peaks == {0.88, 1.0}


def test_a_small_scan_stands_in_the_middle_of_zeros(write, tmp_path):
    array = np.random.default_rng(0).integers(10, 200, (6, 20, 20)).astype(np.int16)
    array[0, 0, 0] = 0
    write("scans/a.nii", array)
    findings = first_pass(find_scans(tmp_path / "scans"), PREPARATION)
    options = {"cache": tmp_path / "cache", "flips": (False, False, False)}
    sample = VolumeCrops(findings, (10, 20, 10), **options)[0]["volume"][0]
    want = (array + 175) / 425
    starts = [w for w in range(11) if np.allclose(sample[2:8], want[:, :, w : w + 10], atol=1e-3)]
    assert len(starts) == 1
    assert not sample[:2].any()
    assert not sample[8:].any()


@pytest.mark.parametrize("axis", range(3))
def test_flips_stay_on_their_axis(axis, write, tmp_path):
    array = np.random.default_rng(0).integers(0, 200, (8, 8, 8)).astype(np.int16)
    write("scans/a.nii", array)
    findings = first_pass(find_scans(tmp_path / "scans"), PREPARATION)
    flips = tuple(other == axis for other in range(3))
    crops = VolumeCrops(
        findings, (8, 8, 8), cache=tmp_path / "cache", flips=flips, crops_per_volume=32
    )
    want = torch.from_numpy(((array + 175) / 425).astype(np.float16)).float()
    flipped = 0
    for i in range(32):
        crop = crops[i]["volume"][0]
        flipped += torch.allclose(crop, want.flip(axis), atol=1e-3)
        assert any(torch.allclose(crop, one, atol=1e-3) for one in (want, want.flip(axis)))
    assert 6 <= flipped <= 26


def test_crops_hold_no_map(crops):
    kept = [crops[i] for i in range(6)]
    gc.collect()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list the files mapped into memory")
    assert "volume.npy" not in maps.read_text(encoding="utf-8")
    assert all(sample["volume"].untyped_storage().nbytes() == 4 * 8 * 10 * 12 for sample in kept)


def test_weights_say_how_often(write, tmp_path):
    for seed in range(3):
        write(f"{seed}.nii", blob(seed=seed))
    entries = [{"path": f"{seed}.nii", "weight": (1, 4, 1)[seed]} for seed in range(3)]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    findings = first_pass(find_scans(tmp_path / "list.json"), PREPARATION)
    crops = VolumeCrops(findings, PATCH, cache=tmp_path / "cache", crops_per_volume=1)
    drawn = []
    for number in range(200):
        crops.set_epoch(number)
        drawn += [crops._drawn(place) for place in range(3)]
    np.testing.assert_allclose(np.bincount(drawn) / 600, [1 / 6, 4 / 6, 1 / 6], atol=0.03)


def test_equal_weights_take_every_scan_once(crops):
    for number in range(50):
        crops.set_epoch(number)
        assert [crops._drawn(place) for place in range(3)] == [0, 1, 2]


def test_a_bad_scan_is_replaced_by_the_next_and_told_once(findings, crops, write, tmp_path):
    good = epoch(crops, 0)
    path = tmp_path / "scans/1.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    spoiled = first_pass(find_scans(tmp_path / "scans"), PREPARATION)
    assert len(spoiled.kept) == 3
    dataset = VolumeCrops(spoiled, PATCH, cache=tmp_path / "new", crops_per_volume=2)
    with pytest.warns(UserWarning, match=r"1\.nii\.gz is left out: .*end-of-stream") as told:
        replaced = epoch(dataset, 0)
    assert len(told) == 1
    assert same(replaced[:2] + replaced[4:], good[:2] + good[4:])
    volumes = dataset.cache.open(spoiled.kept[2]).volume.astype(np.float32)
    assert float(replaced[2]["volume"].max()) <= volumes.max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(epoch(dataset, 0, num_workers=2), replaced)
    (bad,) = dataset.left_out()
    assert bad.source.path == str(path)
    assert "end-of-stream" in bad.reason


def test_the_replacement_is_the_next_scan(write, tmp_path):
    """Two scans of different brightness tell which one a crop comes from."""
    for name, value in (("a", 0), ("b", 50), ("c", 200)):
        array = np.full((10, 10, 10), value, np.int16)
        array[0] = -1000 if name != "b" else value
        write(f"scans/{name}.nii.gz", array)
    findings = first_pass(find_scans(tmp_path / "scans"), PREPARATION)
    crops = VolumeCrops(findings, (4, 4, 4), cache=tmp_path / "cache", crops_per_volume=1)
    with pytest.warns(UserWarning, match=r"b\.nii\.gz is left out: all its voxels are 50"):
        peaks = [float(crops[i]["volume"].max()) for i in range(3)]
    np.testing.assert_allclose(peaks, [175 / 425, 375 / 425, 375 / 425], atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*is left out")
def test_only_bad_scans_end_the_run(write, tmp_path):
    write("scans/a.nii", np.ones((9, 9, 9), np.int16))
    findings = first_pass(find_scans(tmp_path / "scans"), PREPARATION)
    crops = VolumeCrops(findings, (4, 4, 4), cache=tmp_path / "cache")
    with pytest.raises(RuntimeError, match=r"none of the 1 scans .*a\.nii: all its voxels are 1"):
        crops[0]


def test_a_scan_changed_or_gone_since_the_first_pass_is_no_bad_scan(crops, tmp_path):
    path = tmp_path / "scans/0.nii.gz"
    os.utime(path, ns=(0, 0))
    with pytest.raises(RuntimeError, match="changed since the first pass"):
        crops[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.nii\.gz"):
        crops[0]
    assert not crops.left_out()


def test_a_failing_disk_is_not_the_fault_of_the_scan(crops, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(reading.gzip, "open", fail)
        with pytest.raises(OSError, match="Input/output error"):
            crops[0]
    assert not crops.left_out()
    assert crops[0]["volume"].any()


def test_processes_may_prepare_the_same_scan_at_once(findings, tmp_path):
    store = VolumeCache(tmp_path / "cache", PREPARATION)
    barrier, volumes = threading.Barrier(4), []

    def prepare_together():
        barrier.wait()
        volumes.append(np.array(store.open(findings.kept[0]).volume))

    threads = [threading.Thread(target=prepare_together) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(volumes) == 4
    assert all(np.array_equal(volume, volumes[0]) for volume in volumes)
    assert list(store.folder.iterdir()) == [store.entry(findings.kept[0])]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(crops, monkeypatch, number):
    def full(file, array):
        file.write_bytes(b"half")
        raise OSError(number, "full")

    monkeypatch.setattr(cache, "_write_array", full)
    with pytest.raises(OSError, match="the disk of the cache is full; free space"):
        crops[0]
    assert list(crops.cache.folder.iterdir()) == []
    monkeypatch.undo()
    assert crops[0]["volume"].any()


def test_preparations_share_a_cache(findings, crops, tmp_path):
    crops[0]
    zscore = Preparation(spacing=None, intensity={"kind": "zscore"})
    others = VolumeCrops(
        first_pass([kept.scan for kept in findings.kept], zscore), PATCH, cache=tmp_path / "cache"
    )
    assert others[0]["volume"].max() > 2
    volumes = sorted(np.load(file).dtype for file in (tmp_path / "cache").glob("*/volume.npy"))
    assert volumes == [np.float16, np.float32]


def test_a_patch_beyond_every_scan_is_refused(findings, tmp_path):
    VolumeCrops(findings, (40, 48, 56), cache=tmp_path)
    with pytest.raises(
        ValueError, match=r"no scan reaches half of the patch \(41, 48, 56\).*0\.nii"
    ):
        VolumeCrops(findings, (41, 48, 56), cache=tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch": (8, 8)}, "3 positive sizes"),
        ({"patch": (8, 8, 0)}, "3 positive sizes"),
        ({"crops_per_volume": 0}, "crops_per_volume is 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_wrong_options_are_refused(options, words, findings, tmp_path):
    with pytest.raises(ValueError, match=words):
        VolumeCrops(findings, **({"patch": PATCH, "cache": tmp_path} | options))


def test_real_scans(shared, tmp_path):
    findings = first_pass(
        find_scans(shared / "data/volumes/pretrain_unlabelled"),
        Preparation(spacing=(3, 3, 3), intensity={"kind": "percentiles", "low": 0.5, "high": 99.5}),
    )
    assert [Path(kept.scan.path).name[:2] for kept in findings.kept] == ["CT", "MR", "MR", "MR"]
    crops = VolumeCrops(findings, (32, 32, 32), cache=tmp_path, crops_per_volume=1)
    for sample in epoch(crops, 0, num_workers=2):
        assert 0 <= sample["volume"].min() < sample["volume"].max() <= 1
        assert sample["volume"].std() > 0.05
