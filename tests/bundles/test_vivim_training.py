"""The video bundle's own training and evaluation: clips, loss, epochs, and what is refused."""

import csv
from pathlib import Path

import pytest
import torch

from nnunet_plugins.bundle.clip_training import training_clips, vivim_loss
from nnunet_plugins.bundle.export import export_bundle
from nnunet_plugins.bundle.plan import Plan


@pytest.fixture
def bundle(make_video_results, tmp_path) -> Path:
    return export_bundle(make_video_results(), tmp_path / "bundle")


def test_clips_have_the_plans_size_and_stay_still_where_nothing_moves(make_video_results):
    plan = Plan(make_video_results(), "3d_fullres")
    cut = training_clips(plan, [1, 2])
    frame = torch.zeros(1, 1, 40, 70)
    frame[..., 10:30, 20:50] = 1
    label = frame.expand(1, 9, 40, 70)
    image = label.expand(3, -1, -1, -1) * 0.5
    seen = set()
    for _ in range(60):
        clip = cut({"image": image, "label": label})
        (clip,) = clip if isinstance(clip, list) else [clip]
        assert clip["image"].shape == (3, 4, 32, 64)
        assert clip["label"].shape == (1, 4, 32, 64)
        assert clip["image"].dtype == clip["label"].dtype == torch.float32
        assert set(clip["label"].unique().tolist()) <= {0, 1}
        assert (clip["label"] == clip["label"][:, :1]).all()
        seen.add(clip["label"].sum().item())
    assert len(seen) > 3


def test_every_term_of_the_loss_has_a_gradient(make_video_results):
    loss = vivim_loss(Plan(make_video_results(), "3d_fullres"))
    logits = torch.randn(1, 3, 2, 32, 64, requires_grad=True)
    boundary = torch.randn(1, 1, 2, 32, 64, requires_grad=True)
    labels = torch.zeros(1, 1, 2, 32, 64)
    labels[..., 8:20, 10:30], labels[..., 20:26, 30:40] = 1, 2
    terms = loss.terms((logits, boundary), labels)
    assert set(terms) == {"segmentation", "boundary", "affine"}
    loss((logits, boundary), labels).backward()
    assert logits.grad.abs().sum() > 0
    assert boundary.grad.abs().sum() > 0


def test_the_bundle_trains_goes_on_and_evaluates(bundle, raw_videos, run_bundle, tmp_path):
    options = {
        "bundle_root": bundle, "dataset_dir": raw_videos, "ckpt_dir": tmp_path / "weights",
        "warmup": 0, "val_interval": 1,
    }  # fmt: skip
    train = bundle / "configs/train.json"
    runs = {"output_dir": tmp_path / "runs"}
    pretrained = {"pretrained": bundle / "models/model.pt"}
    assert run_bundle(train, epochs=1, **pretrained, **options, **runs) == ""
    assert run_bundle(train, epochs=2, resume=True, **options, **runs) == ""
    last = torch.load(tmp_path / "weights/checkpoint_last.pt", weights_only=True)
    assert last["epoch"] == 2
    assert list((tmp_path / "runs").glob("events*"))
    said = run_bundle(
        bundle / "configs/inference.json", bundle / "configs/evaluate.json", bundle_root=bundle,
        dataset_dir=raw_videos, output_dir=tmp_path / "eval", mirror_axes=[],
        ckpt_path=tmp_path / "weights/model.pt",
    )  # fmt: skip
    assert said == ""
    rows = list(csv.reader((tmp_path / "eval/dice.csv").open()))
    assert rows[0] == ["case", "polyp", "tool"]
    assert len(rows) == 3
    assert all(0 <= float(score) <= 1 for row in rows[1:] for score in row[1:])
