"""Video in nnU-Net: plans keep time, augmentation keeps frames together, trainers train."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

from nnunet_plugins.clip_augmentation import clip_geometry, frame_blur
from nnunet_plugins.clip_planner import largest_step
from nnunet_plugins.memory import training_bytes
from nnunet_plugins.planners.VivimPlanner import VivimPlanner
from nnunet_plugins.registry import find_class
from nnunet_plugins.trainers.VivimTrainer import VivimTrainer

TRAINER = "VivimTrainer_small_2epochs_2iterations"
SIZE = (4, 48, 64)


def plans(video_nnunet) -> dict:
    return json.loads((video_nnunet.preprocessed / "nnUNetVivimPlans.json").read_text())


def step_bytes(clip, batch_size) -> int:
    """A made-up network: 1000 for its weights, two for a pixel."""
    return 1000 + batch_size * (500 + 2 * int(np.prod(clip)))


@pytest.mark.parametrize("memory", [200_000, 500_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("frames", [1, 3, 20])
def test_clips_are_as_long_as_memory_and_videos_allow_and_no_longer(memory, frames):
    (t, h, w), n = largest_step(step_bytes, memory, frames, (100, 128))
    assert step_bytes((t, h, w), n) <= memory
    assert 2 <= n <= 8
    assert t <= frames
    if t < frames:
        assert step_bytes((t + 1, h, w), 2) > memory
    if (h, w) != (128, 128):
        assert step_bytes((min(frames, 5), 128, 128), 2) > memory, "cut without need"


def test_too_little_memory_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="-gpu_memory_target"):
        largest_step(step_bytes, 2000, 5, (100, 100))


def test_plans_keep_time_first_and_whole(video_nnunet):
    plan = plans(video_nnunet)
    assert plan["transpose_forward"] == [0, 1, 2]
    configuration = plan["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [6, 64, 64]  # frames of 40 x 48, by multiples of 32
    assert configuration["spacing"] == [1, 1, 1]
    assert configuration["architecture"]["network_class_name"].endswith("vivim.Vivim")


def test_large_frames_are_shrunk_and_time_is_not():
    planner = VivimPlanner.__new__(VivimPlanner)
    planner.overwrite_target_spacing = None
    planner.dataset_fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * 3, "shapes_after_crop": [[50, 768, 768]] * 3,
    }  # fmt: skip
    assert planner.determine_fullres_target_spacing().tolist() == [1, 2, 2]
    resample, options = planner.determine_resampling()[:2]
    clip = torch.rand(3, 7, 20, 30)
    small = resample(clip, (7, 10, 15), (1, 1, 1), (1, 2, 2), **options)
    for t in range(7):
        alone = resample(clip[:, t : t + 1], (1, 10, 15), (1, 1, 1), (1, 2, 2), **options)
        assert torch.equal(small[:, t : t + 1], alone)


@pytest.mark.parametrize("name", ["VivimPlanner", "EndoMambaPlanner"])
def test_a_step_of_the_planned_network_fits_the_memory(name):
    planner = find_class(name).__new__(find_class(name))
    planner.dataset_json = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"a": 0}}
    planner.dataset_fingerprint = {"shapes_after_crop": [[3, 64, 64]] * 4}
    planner.UNet_vram_target_GB = 1.5
    size, batch_size = planner._largest_step((3, 64, 64))

    def share(clips: int) -> float:
        used = training_bytes(lambda: planner.build_network(3, 1), (3, *size), clips)
        return used / (0.85 * 1.5 * 2**30)

    assert size == [3, 64, 64]
    assert share(batch_size) <= 1.02  # nearly linear in frames, and 15 % are kept free
    assert share(batch_size + 1) > 1 or batch_size == 8


def pipeline(noise: bool = False):
    """Training transforms with every chance raised to one; noise, which differs, left out."""
    geometry = clip_geometry(SIZE)
    transforms = VivimTrainer.get_training_transforms(
        list(SIZE), geometry.rotation, None, geometry.mirror_axes, geometry.frame_by_frame,
        use_mask_for_norm=[False] * 3, is_cascaded=False, foreground_labels=[1], regions=None,
        ignore_label=None,
    )  # fmt: skip
    for transform in transforms.transforms:
        for name in ("apply_probability", "p_rotation", "p_scaling"):
            if hasattr(transform, name):
                setattr(transform, name, 1)
    chosen = [t for t in transforms.transforms if noise or "GaussianNoise" not in repr_of(t)]
    assert len(chosen) == len(transforms.transforms) - (not noise)
    return chosen


def repr_of(transform) -> str:
    return type(getattr(transform, "transform", transform)).__name__


@pytest.mark.parametrize("seed", range(4))
def test_all_frames_of_a_clip_are_augmented_alike(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    frame, label = torch.rand(3, 1, 80, 96), torch.randint(0, 2, (1, 1, 80, 96)).to(torch.int16)
    sample = {
        "image": frame.expand(3, 4, 80, 96).clone(),
        "segmentation": label.expand(1, 4, 80, 96).clone(),
    }
    for transform in pipeline():
        sample = transform(**sample)
        for values in (sample["image"], sample["segmentation"]):
            values = values.unflatten(0, (-1, 4)) if values.ndim == 3 else values  # 2-D for a while
            torch.testing.assert_close(values, values[:, :1].expand_as(values))
    assert sample["image"].shape[1:] == SIZE
    assert not torch.allclose(sample["image"][:, 0], frame[:, 0, 16:64, 16:80])


@pytest.mark.parametrize("seed", range(4))
def test_augmentation_keeps_the_order_of_frames(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    ramp = torch.arange(1, 5).view(1, 4, 1, 1).expand(3, 4, 80, 96) / 5
    noise = 0.02 * torch.rand(3, 1, 80, 96)
    sample = {
        "image": (ramp + noise).clone(),
        "segmentation": torch.zeros(1, 4, 80, 96, dtype=torch.int16),
    }
    for transform in pipeline():
        sample = transform(**sample)
    centre = sample["image"][:, :, 20:28, 28:36].mean((0, 2, 3))
    assert (centre.diff() > 0).all()


def test_blur_stays_within_frames():
    clip = torch.zeros(1, 3, 16, 16)
    clip[:, 1, 8, 8] = 1
    blurred = frame_blur(GaussianBlurTransform((1.0, 1.0)))(image=clip.clone())["image"]
    assert blurred[0, 1, 8, 7] > 0
    assert not blurred[0, 0].any()
    assert not blurred[0, 2].any()


def test_training_validates_and_predicts(video_nnunet, tmp_path):
    video_nnunet.train(TRAINER)
    results = video_nnunet.results(TRAINER)
    summary = json.loads((results / "fold_0/validation/summary.json").read_text())
    assert 0 <= summary["foreground_mean"]["Dice"] <= 1
    used = json.loads((results / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert used["patch_size"][0] == 5
    assert used["batch_size"] == 2
    video_nnunet(
        "nnUNetv2_predict", "-i", str(video_nnunet.raw / "imagesTr"), "-o", str(tmp_path), "-d",
        "902", "-c", "3d_fullres", "-f", "0", "-tr", TRAINER, "-p", "nnUNetVivimPlans", "-device",
        "cpu", "-npp", "1", "-nps", "1",
    )  # fmt: skip
    for image in sorted((video_nnunet.raw / "imagesTr").glob("*_0000.nii.gz")):
        predicted = sitk.ReadImage(str(tmp_path / image.name.replace("_0000", "")))
        assert predicted.GetSize() == sitk.ReadImage(str(image)).GetSize()


@pytest.mark.parametrize("name", [TRAINER, "EndoMambaTrainer_small_2epochs_2iterations"])
def test_the_same_seed_gives_the_same_curve(build_video_trainer, name):
    curves = []
    for _ in range(2):
        trainer = build_video_trainer(name)
        trainer.num_val_iterations_per_epoch = 1
        trainer.run_training()
        curves.append([trainer.logger.get_value("train_losses", step=e) for e in range(2)])
    assert curves[0] == curves[1]


def test_every_term_of_the_loss_is_trained_and_validation_takes_the_segmentation(
    build_video_trainer,
):
    trainer = build_video_trainer(TRAINER)
    prediction = trainer.network.train()(torch.rand(1, 3, 2, 40, 48))
    labels = torch.zeros(1, 1, 2, 40, 48)
    labels[..., 10:30, 8:36] = 1
    terms = trainer.loss.terms(prediction, labels)
    assert set(terms) == {"segmentation", "affine", "boundary"}
    for name, term in terms.items():
        trainer.network.zero_grad()
        term.backward(retain_graph=True)
        first = trainer.network.encoder.stages[0].embed
        assert any(p.grad.abs().sum() > 0 for p in first.parameters()), name
    logits = trainer.network.eval()(torch.rand(1, 3, 2, 40, 48))
    assert set(trainer.loss.terms(logits, labels)) == {"segmentation"}


def test_what_has_no_time_axis_or_overlapping_labels_is_refused(build_video_trainer):
    with pytest.raises(ValueError, match="no time axis; train 3d_fullres"):
        build_video_trainer(TRAINER, configuration="2d")
    regions = {"background": 0, "all": [1, 2], "part": 2}
    with pytest.raises(ValueError, match="exclude each other"):
        build_video_trainer(TRAINER, labels=regions, regions_class_order=[1, 2])


def test_plans_that_move_time_or_have_none_are_refused(build_video_trainer, video_nnunet):
    moved = plans(video_nnunet) | {"transpose_forward": [2, 0, 1]}
    with pytest.raises(ValueError, match="move axis 2 to the front, where time belongs"):
        build_video_trainer(TRAINER, plans=moved)
    planner = VivimPlanner.__new__(VivimPlanner)
    planner.dataset_name = "Dataset003_Stills"
    planner.dataset_fingerprint = {"shapes_after_crop": [[1, 64, 64]] * 3}
    with pytest.raises(ValueError, match="videos of one frame; plan those with nnU-Net's own"):
        planner.plan_experiment()


def test_small_frames_are_filled_up_instead_of_refused():
    assert largest_step(step_bytes, 1_000_000, 5, (30, 80))[0][1:] == [64, 96]
