"""Teachers: tokens where they belong, whatever the model; frozen; refused if they have no grid."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nnunet_plugins.networks import EndoMambaBackbone
from pretrain.hierarchical import HierarchicalPretraining
from pretrain.run_folder import RunFolder
from pretrain.teachers.endomamba import EndoMambaTeacher, endomamba_teacher
from pretrain.teachers.features import (
    RECORD,
    FeatureTeacher,
    cut,
    feature_file,
    neighbours,
    windows,
    write_features,
)
from pretrain.teachers.huggingface import (
    FAMILIES,
    HuggingFaceTeacher,
    huggingface_teacher,
    without_torchvision,
)
from pretrain.teachers.interface import resampled
from pretrain.teachers.opening import open_teacher

SIZES = {"d_model": 16, "depth": 2, "image_size": (32, 32), "patch_size": 8, "drop_path": 0.0}
COMMON = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMON |= {"intermediate_size": 32, "image_size": 32, "patch_size": 8}
CONFIGS = {
    "videomae": ("VideoMAEConfig", COMMON | {"num_frames": 4}, (2, 4, 4)),
    "vivit": ("VivitConfig", COMMON | {"num_frames": 4, "tubelet_size": [2, 8, 8]}, (2, 4, 4)),
    "timesformer": ("TimesformerConfig", COMMON | {"num_frames": 4}, (4, 4, 4)),
    "vjepa2": (
        "VJEPA2Config",
        COMMON | {"crop_size": 32, "frames_per_clip": 4, "mlp_ratio": 2.0, "pred_hidden_size": 12,
                  "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
        (2, 4, 4),
    ),
    "vit": ("ViTConfig", COMMON, (4, 4, 4)),
    "deit": ("DeiTConfig", COMMON, (4, 4, 4)),
    "dinov2": ("Dinov2Config", COMMON, (4, 4, 4)),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", COMMON, (4, 4, 4)),
}  # fmt: skip


def transformers():
    """The package, or the test is skipped."""
    with without_torchvision():
        package = pytest.importorskip("transformers", reason="transformers is not installed")
        package.AutoModel, package.AutoConfig  # noqa: B018, imported when they are first asked for
    return package


def random_model(family: str, **changes) -> torch.nn.Module:
    name, options, _ = CONFIGS[family]
    package = transformers()
    with without_torchvision():
        torch.manual_seed(0)
        return package.AutoModel.from_config(getattr(package, name)(**options | changes))


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(2, 3, 4, 32, 32)


def test_every_family_is_tested():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_stand_where_they_look(family, clip):
    """What changes in a patch changes the token of its place most; another order is caught."""
    teacher = HuggingFaceTeacher(random_model(family), family)
    before = teacher.tokens(clip)
    assert before.shape == (2, *CONFIGS[family][2], 24)
    frames = before.shape[1]
    for t, y, x in ((0, 0, 3), (1, 2, 0), (3, 1, 2)):
        other = clip.clone()
        other[0, :, t, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = torch.randn(3, 8, 8)
        change = (teacher.tokens(other) - before).norm(dim=-1)
        assert change[1].max() < 1e-5
        most = divmod(int(change[0].argmax()), 16)
        assert most == (t * frames // 4, 4 * y + x)


@pytest.mark.parametrize("family", ["videomae", "vit"])
def test_clips_of_other_sizes_end_to_end(family, tmp_path):
    """From a folder on disk to gradients of the student; frames and pixels as the model wants."""
    random_model(family).save_pretrained(tmp_path)
    how = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(how))
    teacher = open_teacher(f"hf:{tmp_path}")
    assert teacher.preparation["image_mean"] == [0.5] * 3
    objective = HierarchicalPretraining(
        EndoMambaBackbone(3, **SIZES), decoder_width=12, decoder_depth=1, teacher=teacher
    )
    output = objective(torch.rand(2, 3, 3, 48, 64))
    output.loss.backward()
    assert 0 < output.parts["alignment"] < 2
    assert objective.projection.weight.grad.isfinite().all()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert not any("model" in name or "teacher" in name for name in objective.state_dict())


def test_a_teacher_runs_in_its_own_dtype_and_never_in_training(clip):
    teacher = HuggingFaceTeacher(random_model("vit").bfloat16(), "vit")
    with torch.autocast("cpu", torch.float16):
        tokens = teacher.tokens(clip)
    assert tokens.dtype == torch.bfloat16
    assert not tokens.is_inference()
    assert not tokens.requires_grad
    assert not teacher.model.training
    assert resampled(tokens, (2, 3, 5)).dtype == torch.float32


def test_fingerprints_tell_weights_apart(tmp_path):
    model = random_model("vit")
    first = HuggingFaceTeacher(model, "vit").fingerprint
    model.save_pretrained(tmp_path)
    assert huggingface_teacher(tmp_path).fingerprint == first
    model.layernorm.weight.data[0] += 1
    assert HuggingFaceTeacher(model, "vit").fingerprint != first


def test_models_without_a_token_grid_are_refused(tmp_path):
    package = transformers()
    with without_torchvision():
        config = package.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])
        package.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'resnet', whose output has no token grid"):
        huggingface_teacher(tmp_path)
    with pytest.raises(ValueError, match="attention over time"):
        HuggingFaceTeacher(random_model("timesformer", attention_type="space_only"), "x")
    teacher = HuggingFaceTeacher(random_model("vit"), "vit")
    teacher.model.embeddings.register_forward_hook(lambda *a: a[2][:, :3])
    with pytest.raises(ValueError, match="no token grid that is known"):
        teacher.tokens(torch.rand(1, 3, 1, 32, 32))


def test_models_that_are_not_whole_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        huggingface_teacher(tmp_path)
    model = random_model("vit")
    model.save_pretrained(tmp_path)
    weights = {n: x for n, x in model.state_dict().items() if n != "layernorm.bias"}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of its model, layernorm\.bias"):
        huggingface_teacher(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="transformers cannot read the model"):
        huggingface_teacher(tmp_path)


def a_run(folder, backbone: EndoMambaBackbone):
    """What the engine leaves of a run."""
    objective = HierarchicalPretraining(backbone, decoder_width=12, decoder_depth=1)
    network = {"network": "EndoMamba", "input_channels": 3}
    network["arguments"] = {**SIZES, "image_size": [32, 32], "decoder_widths": [8, 8, 8]}
    run = RunFolder(folder, {"settings": {}, "run": {}})
    run.start({})
    run.save_weights("best", objective.network, {"objective": "endomamba", "network": network})
    return objective.eval()


def test_an_endomamba_of_ours_gives_the_features_it_was_pretrained_with(tmp_path, clip):
    objective = a_run(tmp_path / "run", EndoMambaBackbone(3, **SIZES))
    teacher = endomamba_teacher(tmp_path / "run")
    wanted = objective.encode(clip, torch.ones(2, 4, 16).bool()).view(2, 4, 4, 4, 16)
    torch.testing.assert_close(teacher.tokens(clip), wanted, rtol=1e-4, atol=1e-4)
    assert teacher.name == "endomamba:run"
    with pytest.raises(FileNotFoundError, match="give the folder of a pretraining run"):
        endomamba_teacher(tmp_path)


def copying(teacher, clip: Tensor, steps: int) -> list[float]:
    """Alignment of a student of the teacher's kind that learns nothing else, after each step."""
    torch.manual_seed(5)
    objective = HierarchicalPretraining(
        EndoMambaBackbone(3, **SIZES), decoder_width=12, decoder_depth=1, teacher=teacher
    )
    optimizer = torch.optim.AdamW(objective.backbone.parameters(), lr=1e-2)
    falling = []
    for _ in range(steps):
        optimizer.zero_grad()
        alignment = objective(clip, seed=torch.tensor([1, 2])).parts["alignment"]
        alignment.backward()
        optimizer.step()
        falling.append(alignment.item())
    return falling


def test_a_student_copies_a_frozen_endomamba(clip):
    torch.manual_seed(3)
    falling = copying(EndoMambaTeacher(EndoMambaBackbone(3, **SIZES), "x"), clip, 100)
    assert falling[0] > 0.4
    assert falling[-1] < 0.02


class Shuffled(EndoMambaTeacher):
    """Gives its tokens place by place where frame by frame is asked for."""

    def run(self, clip):
        tokens = super().run(clip)
        return tokens.movedim(1, 3).reshape(tokens.shape)


def test_a_wrong_order_of_tokens_is_caught(clip):
    """The teacher's own weights, nearly all patches seen: only the right order is aligned."""
    torch.manual_seed(3)
    backbone = EndoMambaBackbone(3, **SIZES)
    visible = torch.ones(2, 4, 16).bool()
    visible[:, :, -1] = False
    with torch.no_grad():
        right, wrong = (
            HierarchicalPretraining(
                backbone, decoder_width=12, decoder_depth=1, teacher=kind(backbone, "x"),
                mean=(0, 0, 0), std=(1, 1, 1),
            ).eval()(clip, visible).parts["alignment"]
            for kind in (EndoMambaTeacher, Shuffled)
        )  # fmt: skip
    assert right < 0.05
    assert wrong > 5 * right


def test_grids_are_resampled_over_the_same_clip():
    ramp = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 2, 2, 3)
    finer = resampled(ramp, (8, 2, 2))
    assert finer[0, :, 0, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert resampled(ramp, (4, 2, 2)) is ramp


@pytest.fixture
def features(tmp_path):
    """Two videos whose features are time, row and column of each token's centre, in pixels."""
    record = {"name": "x", "fingerprint": "f", "channels": 3, "clips": {}}
    (tmp_path / RECORD).write_text(json.dumps(record))
    times = torch.tensor([0.5, 4.5, 8.5, 20.5, 24.5])
    rows, columns = 10 + 10 * torch.arange(4) + 5, 20 * torch.arange(5) + 10
    for content, shift in (("a", 0), ("b", 1000)):
        grid = torch.meshgrid(times + shift, rows.float(), columns.float(), indexing="ij")
        tokens = torch.stack(grid, dim=-1)
        stretches = torch.tensor([0, 0, 0, 1, 1])
        write_features(feature_file(tmp_path, content), tokens, times, stretches, (10, 0, 50, 100))
    return FeatureTeacher(tmp_path, ["b", "a"])


def test_features_on_disk_are_read_at_the_clips_place(features):
    place = {
        "video": torch.tensor([1, 0]),
        "frames": torch.tensor([[2, 4, 6], [9, 18, 22]]),
        "box": torch.tensor([[20.0, 20.0, 40.0, 80.0], [10.0, 0.0, 50.0, 100.0]]),
        "flipped": torch.tensor([False, True]),
    }
    tokens = features.tokens(torch.rand(2, 3, 3, 32, 32), **place)
    assert tokens.shape == (2, 3, 4, 5, 3)
    first, second = tokens
    torch.testing.assert_close(first[:, 0, 0, 0], torch.tensor([2.0, 4.0, 6.0]))
    torch.testing.assert_close(first[0, :, 0, 1], torch.tensor([22.5, 27.5, 32.5, 37.5]))
    torch.testing.assert_close(first[0, 0, :, 2], torch.tensor([26.0, 38.0, 50.0, 62.0, 74.0]))
    times = second[:, 0, 0, 0] - 1000  # 9 is in the first stretch, 18 before the second
    torch.testing.assert_close(times, torch.tensor([8.5, 20.5, 22.0]), rtol=0, atol=0.5)
    torch.testing.assert_close(second[0, 0, :, 2], torch.tensor([90.0, 70, 50, 30, 10]))


def test_features_that_do_not_match_are_refused(features, tmp_path):
    with pytest.raises(ValueError, match="no features of 1 of the 2 videos"):
        FeatureTeacher(tmp_path, ["a", "c"])
    with pytest.raises(ValueError, match="the clips do not say theirs"):
        features.tokens(torch.rand(1, 3, 1, 8, 8))
    with pytest.raises(FileNotFoundError, match=r"holds no teacher\.json"):
        FeatureTeacher(tmp_path / "none", [])
    with pytest.raises(ValueError, match="are features already"):
        open_teacher(f"features:{tmp_path}")
    feature_file(tmp_path, "a").write_bytes(b"rubbish")
    place = {"video": torch.tensor([1]), "frames": torch.tensor([[1]])}
    place |= {"box": torch.ones(1, 4), "flipped": torch.tensor([False])}
    with pytest.raises(ValueError, match="is damaged"):
        features.tokens(torch.rand(1, 3, 1, 8, 8), **place)
    ones, large = torch.ones(1), torch.full((1, 1, 1, 1), 1e6)
    with pytest.raises(ValueError, match="exceed float16"):
        write_features(tmp_path / "x", large, ones, ones, (0, 0, 1, 1))


def test_between_tokens_and_at_the_ends():
    times, stretches = torch.tensor([0.0, 2, 4, 10]), torch.tensor([0, 0, 0, 1])
    before, after, share = neighbours(times, stretches, torch.tensor([-1, 1, 2, 6, 9, 30]))
    values = torch.lerp(times[before], times[after], share)
    assert values.tolist() == [0, 1, 2, 4, 10, 10]
    whole = torch.rand(2, 3, 4, 5)
    box = torch.tensor([0.0, 0, 9, 8])
    torch.testing.assert_close(cut(whole, box, box), whole)


def test_windows_cover_a_stretch():
    assert windows(3, 12, 2, 4) == [[3, 7], [11, 11]]
    assert windows(0, 8, 4, 1) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("told", ["x", "torch:model.pt", "hf:", "endomamba"])
def test_unknown_kinds_are_refused(told):
    with pytest.raises(ValueError, match="give KIND:PATH with one of hf"):
        open_teacher(told)
