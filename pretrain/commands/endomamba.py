"""`python -m pretrain endomamba`: EndoMamba learns from videos without labels."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

import torch

from pretrain.blueprint import CLIP_NETWORKS, Blueprint
from pretrain.commands.training_options import add_training_arguments, training_settings
from pretrain.engine import pretrain
from pretrain.film_strips import draw_clips
from pretrain.hierarchical import HierarchicalPretraining
from pretrain.presets import CLIP_RATE, CLIPS
from pretrain.run_folder import RunFolder
from pretrain.sampling import Batch, Samples
from pretrain.teachers.features import FeatureTeacher
from pretrain.teachers.interface import Teacher
from pretrain.teachers.located import LocatedClips
from pretrain.teachers.opening import KINDS, open_teacher
from pretrain.training_step import main_process_first
from pretrain.videos import ClipSettings, Findings, VideoClips, describe, find_videos, first_pass

CHANNELS = 3
OBJECTIVE = ("mask_ratio", "decoder_width", "decoder_depth", "decoder_heads", "alignment_weight")
"""Options that go to `HierarchicalPretraining` by their names."""
CLIP_OPTIONS = ("frames", "stride", "fps", "size", "scale", "flip", "colour", "clips", "seed")
"""Options that go to `ClipSettings` by their names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options. Those without a default take the preset's."""
    parser.add_argument(
        "data", type=Path, nargs="+", help="folders of videos, videos, or manifests"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (runs/endomamba_PRESET)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    presets = "; ".join(f"{name}: {preset.purpose}" for name, preset in CLIPS.items())
    parser.add_argument("--preset", choices=CLIPS, default="quick", help=presets)
    group = parser.add_argument_group("network")
    group.add_argument("--network", choices=CLIP_NETWORKS)
    group.add_argument("--drop-path", type=float, help="chance to skip the last layer")
    _add_objective_arguments(parser.add_argument_group("objective"))
    _add_data_arguments(parser.add_argument_group("data"))
    add_training_arguments(parser)


def _add_objective_arguments(group: Any) -> None:
    kinds = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
    group.add_argument("--teacher", metavar="KIND:PATH", help=f"whose features guide ({kinds})")
    group.add_argument("--alignment-weight", type=float, help="of these in the loss (0.25)")
    group.add_argument("--mask-ratio", type=float, help="hidden share")
    group.add_argument("--decoder-width", type=int)
    group.add_argument("--decoder-depth", type=int)
    group.add_argument("--decoder-heads", type=int)


def _add_data_arguments(group: Any) -> None:
    group.add_argument("--frames", type=int, help="of a clip")
    group.add_argument("--stride", type=int, help="frames of the video for one of the clip")
    group.add_argument("--fps", type=float, help="frames of a clip a second, in place of a stride")
    group.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels of a clip")
    group.add_argument("--scale", type=float, nargs=2, help="shares of a frame's area (0.5 1)")
    group.add_argument("--colour", type=float, help="share by which colours change (0.2)")
    group.add_argument("--no-flip", dest="flip", action="store_false", default=None)
    group.add_argument("--clips", type=int, help="of an epoch (as many as fit side by side)")
    group.add_argument("--side", type=int, help="keep frames on disk, with so many pixels a side")
    group.add_argument("--on-bad", choices=("leave_out", "stop"), default="leave_out")
    group.add_argument("--cache", type=Path, help="for what was seen (in the run's folder)")


def run(args: argparse.Namespace) -> int:
    """Pretrain, and say where the weights are."""
    chosen = {name: value for name, value in vars(args).items() if value is not None}
    options = {**CLIPS[args.preset].options, **chosen}
    folder: Path = args.out or Path("runs") / f"endomamba_{args.preset}"
    options.setdefault("lr", CLIP_RATE * options["batch_size"] / 256)
    settings = training_settings(options, chosen)
    clip_settings = ClipSettings(**{k: options[k] for k in CLIP_OPTIONS if k in options})
    blueprint = Blueprint.of_clips(options["network"], CHANNELS, drop_path=options["drop_path"])
    run = RunFolder(folder, {})
    if args.resume:  # refuse before all videos are looked through
        run.check_objective("endomamba")
    else:
        run.check_new()
    with main_process_first(settings):  # the others find in its cache what it has seen
        findings = _findings(args, folder)
    clips = _clips(args, findings, clip_settings, options.get("side"), folder)
    teacher = _teacher(args.teacher, findings, clip_settings)
    dataset: Samples = LocatedClips(clips) if isinstance(teacher, FeatureTeacher) else clips
    objective_options = {name: options[name] for name in OBJECTIVE if name in options}
    torch.manual_seed(settings.seed)
    network: Any = blueprint.build()
    objective = HierarchicalPretraining(network.encoder, teacher=teacher, **objective_options)
    objective.token_grid((CHANNELS, clip_settings.frames, *clip_settings.size))
    about = {
        "objective": "endomamba",
        "network": blueprint.plain(),
        "clips": clip_settings.plain(),
        "teacher": teacher and {"name": teacher.name, "fingerprint": teacher.fingerprint},
    }

    def draw(output: Any, batch: Batch, path: Path) -> None:
        clip = batch["clip"].to(output.visible.device)
        grid = objective.token_grid(clip.shape[1:])
        visible = output.visible.view(len(clip), 1, *grid)
        draw_clips(clip, visible, objective.restored(clip, output), path)

    pretrain(
        objective, dataset, folder, settings, resume=args.resume, draw=draw,
        config={**about, "options": objective_options, "data": findings.fingerprint,
                "side": options.get("side")},
        metadata={**about, "input": "RGB in [0, 1]"},
        records={"data": describe(findings)},
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        for one in clips.left_out()[:10]:
            print(f"left out: {one}")
        print(
            f"The weights are in {folder / 'best.safetensors'}. Hand them on with python -m "
            f"pretrain export {shlex.quote(str(folder))} --to nnunet --plans ... or --to bundle."
        )
    return 0


def _findings(args: argparse.Namespace, folder: Path) -> Findings:
    """Videos that can be used; the others are named."""
    findings = first_pass(
        find_videos(args.data), args.cache or folder / "cache", on_bad=args.on_bad
    )
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        for one in findings.left_out[:10]:
            print(f"left out: {one}")
        print(f"{len(findings.kept)} videos, {len(findings.left_out)} left out", flush=True)
    return findings


def _clips(
    args: argparse.Namespace,
    findings: Findings,
    settings: ClipSettings,
    side: int | None,
    folder: Path,
) -> VideoClips:
    """Clips of these videos, whose frames are kept on disk if a side is given."""
    if side is None:
        return VideoClips(findings, settings)
    return VideoClips(findings, settings, cache=args.cache or folder / "cache", side=side)


def _teacher(told: str | None, findings: Findings, settings: ClipSettings) -> Teacher | None:
    """The teacher that was named, tried on a clip.

    Raises:
        ValueError: If it cannot be used.
    """
    if told is None:
        return None
    teacher = open_teacher(told, [kept.content for kept in findings.kept])
    if not isinstance(teacher, FeatureTeacher):
        teacher.tokens(torch.zeros(1, CHANNELS, settings.frames, *settings.size))
    return teacher
