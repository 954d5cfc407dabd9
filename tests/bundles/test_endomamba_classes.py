"""The bundles of classes and phases: tables in, answers of every frame out; their refusals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_plugins.bundle.answer_scores import AnswersScore
from nnunet_plugins.bundle.frame_answers import FrameCrossEntropy, SavedAnswersd, Scored
from nnunet_plugins.bundle.sampled_frames import (
    RandClipd,
    RandFramesd,
    SampledVideo,
    repeated,
    shrunk,
)
from nnunet_plugins.bundle.video_table import read_phases, videos_of_part
from nnunet_plugins.data import read_clip
from nnunet_plugins.evaluation.phase import UNKNOWN
from tests.bundles.conftest import write_lines

ROOT = Path(__file__).parents[2]
CLASSES = ["normal", "abnormal"]
PHASES = ["preparation", "suturing"]
TINY = {
    "network_def#d_model": 16, "network_def#depth": 2, "image_size": [32, 32], "stride": 2,
}  # fmt: skip


def rows_of(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


@pytest.mark.parametrize(
    ("kind", "table", "figures"),
    [
        ("classification", "label_table", {("videos", "macro F1"), ("videos", "accuracy")}),
        ("phase", "phase_table", {("strict", "accuracy"), ("relaxed (10 s)", "f1")}),
    ],
)
def test_it_trains_goes_on_evaluates_and_answers(
    kind, table, figures, request, run_bundle, labelled_videos, tmp_path
):
    bundle = ROOT / f"bundles/endomamba_{kind}"
    data = request.getfixturevalue(table)
    options = TINY | {"bundle_root": bundle, "ckpt_path": tmp_path / "weights/model.pt"}
    training = TINY | {
        "bundle_root": bundle, "dataset_dir": data, "ckpt_dir": tmp_path / "weights",
        "output_dir": tmp_path / "runs", "warmup": 0, "clips_per_video": 2, "frames": 4,
    }  # fmt: skip
    train, inference = bundle / "configs/train.json", bundle / "configs/inference.json"
    assert run_bundle(train, epochs=1, **training) == ""
    assert run_bundle(train, epochs=2, resume=True, **training) == ""
    last = torch.load(tmp_path / "weights/checkpoint_last.pt", weights_only=True)
    assert last["epoch"] == 2

    evaluate = bundle / "configs/evaluate.json"
    said = run_bundle(
        inference, evaluate, dataset_dir=data, output_dir=tmp_path / "eval", **options
    )
    assert said == ""
    scores = rows_of(tmp_path / "eval/scores.csv")
    assert scores[0] == ["video", "protocol", "metric", "value"]
    assert figures <= {(protocol, metric) for _, protocol, metric, _ in scores[1:]}
    assert all(0 <= float(value) <= 1 for *_, value in scores[1:] if value)

    out = tmp_path / "out"
    assert run_bundle(inference, dataset_dir=labelled_videos, output_dir=out, **options) == ""
    header, *rows = rows_of(out / "video_3.csv")
    assert header[:3] == ["frame", "time", "phase" if kind == "phase" else "class"]
    assert [row[0] for row in rows] == ["0", "2", "4", "6", "8", "10"]
    assert [row[1] for row in rows[:2]] == ["0.000", "0.500"]
    for row in rows:
        probabilities = [float(p) for p in row[3:]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-3)
        assert row[2] == header[3 + int(np.argmax(probabilities))]
    assert (out / "videos.csv").exists() == (kind == "classification")


def test_answers_are_those_of_the_whole_clip(run_bundle, labelled_videos, tmp_path):
    from nnunet_plugins.networks import EndoMamba

    torch.manual_seed(0)
    network = EndoMamba(3, 2, head="classification", d_model=16, depth=2, image_size=(32, 32))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    bundle = ROOT / "bundles/endomamba_classification"
    said = run_bundle(
        bundle / "configs/inference.json", bundle_root=bundle, output_dir=tmp_path / "out",
        dataset_dir=labelled_videos / "video_1.mp4", ckpt_path=tmp_path / "model.pt", chunk=4,
        **TINY,
    )  # fmt: skip
    assert said == ""
    frames = read_clip(labelled_videos / "video_1.mp4").frames[::2]
    clip = torch.stack([shrunk(frame, (32, 32)) for frame in frames], 1)[None].float() / 255
    with torch.inference_mode():
        logits = network.eval()(clip)[0]
    written = np.array([row[3:] for row in rows_of(tmp_path / "out/video_1.csv")[1:]], float)
    np.testing.assert_allclose(written, logits.softmax(-1), atol=1e-4)
    (_, video) = rows_of(tmp_path / "out/videos.csv")
    np.testing.assert_allclose(np.array(video[2:], float), logits.mean(0).softmax(0), atol=1e-4)


def test_bad_videos_leave_nothing_and_do_not_stop_the_others(run_bundle, labelled_videos, tmp_path):
    from nnunet_plugins.networks import EndoMamba

    network = EndoMamba(3, 7, head="phase", d_model=16, depth=2, image_size=(32, 32))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (labelled_videos / "video_0.mp4").write_bytes(b"no video" * 100)
    bundle = ROOT / "bundles/endomamba_phase"
    said = run_bundle(
        bundle / "configs/inference.json", bundle_root=bundle, dataset_dir=labelled_videos,
        output_dir=tmp_path / "out", ckpt_path=tmp_path / "model.pt", **TINY,
    )  # fmt: skip
    assert said.startswith("1 of 6 videos")
    assert "\n" not in said
    written = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert written == [f"video_{i}.csv" for i in range(1, 6)]


def test_a_video_is_not_called_like_the_list_of_all(labelled_videos, tmp_path):
    (labelled_videos / "video_0.mp4").rename(labelled_videos / "videos.mp4")
    for kind in ("classification", "phase"):
        save = SavedAnswersd(CLASSES, kind, tmp_path / kind)
        video = SampledVideo(labelled_videos / "videos.mp4", (32, 32))
        result = save({"image": video, "pred": iter([torch.zeros(2)])})["pred"]
        assert ("rename the video" in result.error) == (kind == "classification")
        assert (tmp_path / kind / "videos.csv").exists() == (kind == "phase")


def test_parts_are_those_of_the_table(label_table):
    parts = {
        part: {item["name"] for item in videos_of_part(label_table, "label", CLASSES, part)}
        for part in ("train", "validation", "test")
    }
    assert parts["train"] == {"video_0", "video_1"}
    assert parts["validation"] == {"video_2", "video_3"}
    assert parts["test"] == {"video_4", "video_5"}


def test_without_splits_folds_are_drawn_by_patient(labelled_videos):
    rows = [{"video": f"video_{i}.mp4", "label": "normal", "patient": i // 2} for i in range(6)]
    table = labelled_videos / "labels.json"
    table.write_text(json.dumps(rows))
    held_out = []
    for fold in range(3):
        train, held = (
            {item["name"] for item in videos_of_part(table, "label", CLASSES, part, fold)}
            for part in ("train", "validation")
        )
        assert not train & held
        assert len(held) == 2
        assert len({int(name[-1]) // 2 for name in held}) == 1
        held_out += held
    assert len(set(held_out)) == 6
    with pytest.raises(ValueError, match="no fold 3"):
        videos_of_part(table, "label", CLASSES, "train", 3)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["video_0.mp4,normal,train,", "video_0.mp4,normal,val,"], "in train and val"),
        (["video_0.mp4,normal,train,", "./video_0.mp4,normal,test,"], "in train and test"),
        (["video_0.mp4,normal,train,", "video_0.mp4,normal,train,"], "twice"),
        (["video_0.mp4,normal,train,p", "video_1.mp4,normal,val,p"], "p in train and val"),
        (["video_0.mp4,odd,train,"], "'odd'"),
        (["video_0.mp4,,train,"], "no `label`"),
        (["video_9.mp4,normal,train,"], "does not exist"),
        (["video_0.mp4,normal,dev,"], "'dev' is no split"),
        (["video_0.mp4,normal,val,"], "no video for train"),
        ([], "holds no rows"),
    ],
)
def test_tables_that_would_leak_or_cannot_be_read_are_refused(labelled_videos, lines, words):
    table = write_lines(labelled_videos / "bad.csv", "video,label,split,patient", *lines)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as raised:
        videos_of_part(table, "label", CLASSES, "train")
    assert "\n" not in str(raised.value)


def test_a_leak_ends_the_command_in_one_sentence(labelled_videos, run_bundle, tmp_path):
    rows = ("video_0.mp4,normal,train", "video_0.mp4,normal,val")
    table = write_lines(labelled_videos / "leak.csv", "video,label,split", *rows)
    bundle = ROOT / "bundles/endomamba_classification"
    said = run_bundle(
        bundle / "configs/train.json", bundle_root=bundle, dataset_dir=table,
        ckpt_dir=tmp_path / "weights", **TINY,
    )  # fmt: skip
    assert "in train and val" in said
    assert "\n" not in said


def test_processes_without_a_video_are_refused_in_one_sentence(
    label_table, run_bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    bundle = ROOT / "bundles/endomamba_classification"
    said = run_bundle(
        bundle / "configs/train.json", bundle_root=bundle, dataset_dir=label_table,
        ckpt_dir=tmp_path / "weights", **TINY,
    )  # fmt: skip
    assert "has 2 videos for" in said
    assert "there are 3 processes; start fewer with --nproc_per_node" in said


def test_a_phase_holds_until_the_next_row(tmp_path):
    lines = ("frame;phase", "2;preparation", "5;suturing", "7;")
    file = write_lines(tmp_path / "phases.csv", *lines)
    assert read_phases(file, PHASES, 9).tolist() == [-1, -1, 0, 0, 0, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("frame,phase", "3,suturing", "3,suturing"), "must rise"),
        (("frame,phase", "x,suturing"), "columns frame"),
        (("frame,step", "1,suturing"), "columns frame"),
        (("frame,phase", "1,lunch"), "'lunch'"),
    ],
)
def test_phases_that_cannot_be_read_are_refused(tmp_path, lines, words):
    with pytest.raises(ValueError, match=words):
        read_phases(write_lines(tmp_path / "phases.csv", *lines), PHASES, 9)


def test_pieces_hold_a_known_frame_and_keep_frames_and_classes_together():
    frames = torch.arange(20, dtype=torch.uint8).view(1, 20, 1, 1).expand(3, -1, 4, 4)
    known = torch.full((20,), UNKNOWN)
    known[8:12] = torch.arange(8, 12)
    cut = RandClipd(5).set_random_state(0)
    starts = set()
    for _ in range(60):
        piece = cut({"image": frames, "label": known})
        assert piece["image"].shape == (3, 5, 4, 4)
        numbers = (piece["image"][0, :, 0, 0] * 255).round().long()
        assert torch.equal(piece["label"], known[numbers])
        assert (piece["label"] != UNKNOWN).any()
        starts.add(int(numbers[0]))
    assert starts == set(range(4, 12))


def test_short_videos_repeat_a_frame_that_does_not_count():
    frames = torch.arange(2, dtype=torch.uint8).view(1, 2, 1, 1).expand(3, -1, 4, 4)
    piece = RandClipd(4)({"image": frames, "label": torch.tensor([0, 1])})
    assert piece["label"].tolist() == [0, 1, UNKNOWN, UNKNOWN]
    assert torch.equal(piece["image"][:, 3], piece["image"][:, 1])


def test_augmentation_changes_all_frames_of_a_clip_alike():
    still = torch.rand(3, 1, 16, 16).expand(-1, 6, -1, -1)
    augment = RandFramesd([0, 1]).set_random_state(3)
    augment.pipeline.transforms = augment.pipeline.transforms[:-1]  # noise differs, as in a camera
    changed = 0
    for _ in range(12):
        clip = augment({"image": still})["image"]
        assert type(clip) is torch.Tensor
        assert clip.shape == still.shape
        assert torch.allclose(clip, clip[:, :1].expand_as(clip), atol=1e-5)
        changed += not torch.allclose(clip, still)
    assert changed > 6


def test_frames_are_taken_by_stride(labelled_videos):
    video = SampledVideo(labelled_videos / "video_1.mp4", (32, 64), stride=5)
    frames = read_clip(video.path).frames
    found = list(video)
    assert len(found) == 3
    for index, frame in enumerate(found):
        expected = torch.from_numpy(frames[5 * index]).permute(2, 0, 1) / 255
        assert torch.allclose(frame, expected)
    with pytest.raises(ValueError, match="--stride"):
        SampledVideo(video.path, (32, 64), stride=0)


def test_unknown_frames_have_no_loss():
    logits = torch.randn(2, 3, 4)
    classes = torch.tensor([[1, 2, UNKNOWN], [0, UNKNOWN, UNKNOWN]])
    frames = FrameCrossEntropy("phase")(logits, classes)
    known = torch.stack([logits[0, 0], logits[0, 1], logits[1, 0]])
    expected = torch.nn.functional.cross_entropy(known, torch.tensor([1, 2, 0]))
    assert torch.isclose(frames, expected)
    of_clips = torch.tensor([[1, 1, UNKNOWN], [3, 3, 3]])
    clips = FrameCrossEntropy("classification")(logits, of_clips)
    means = torch.stack([logits[0, :2].mean(0), logits[1].mean(0)])
    assert torch.isclose(clips, torch.nn.functional.cross_entropy(means, torch.tensor([1, 3])))


def test_weights_are_chosen_by_the_figure_that_is_named():
    score = AnswersScore("phase", PHASES)
    truth, prediction = np.array([UNKNOWN, 0, 0, 1, 1]), np.array([1, 0, 1, 1, 1])
    score.update(Scored("a", truth, prediction, 1.0))
    score.update(Scored("b", np.array([0, 0]), np.array([1, 0]), 1.0))
    assert score.compute() == pytest.approx((3 / 4 + 1 / 2) / 2)
    score = AnswersScore("classification", CLASSES)
    for name, true, said in (("a", 0, 0), ("b", 1, 0), ("c", 1, 1)):
        score.update(Scored(name, np.array([true]), np.array([said]), None))
    assert score.compute() == pytest.approx(2 / 3)


def test_an_epoch_takes_each_video_as_often():
    assert [v["name"] for v in repeated([{"name": "a"}, {"name": "b"}], 2)] == ["a", "b", "a", "b"]
