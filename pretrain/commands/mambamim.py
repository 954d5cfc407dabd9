"""`python -m pretrain mambamim`: an encoder learns from a folder of scans without labels."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

import torch

from mamba_kernels.scan_order import SCAN_ORDERS
from pretrain.blueprint import NETWORKS, Blueprint
from pretrain.commands.training_options import add_training_arguments, training_settings
from pretrain.engine import pretrain
from pretrain.mambamim import FILLS, MambaMIM
from pretrain.pictures import draw_volumes
from pretrain.plan import Plan, read_plan
from pretrain.presets import INTENSITIES, VOLUMES
from pretrain.run_folder import RunFolder
from pretrain.sampling import Batch
from pretrain.volumes import Preparation, VolumeCrops, describe, find_scans, first_pass

OBJECTIVE = ("mask_ratio", "toki", "skips", "bottom_up", "normalize", "decoder_width")
"""Options that go to `MambaMIM` by their names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options. Those without a default take the preset's."""
    parser.add_argument(
        "data", type=Path, help="folder of scans, or a manifest (.json, .csv, .txt)"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (runs/mambamim_PRESET)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    presets = "; ".join(f"{name}: {preset.purpose}" for name, preset in VOLUMES.items())
    parser.add_argument("--preset", choices=VOLUMES, default="quick", help=presets)
    _add_network_arguments(parser.add_argument_group("network"))
    _add_data_arguments(parser.add_argument_group("data"))
    _add_objective_arguments(parser.add_argument_group("objective"))
    add_training_arguments(parser)


def _add_network_arguments(group: Any) -> None:
    group.add_argument("--network", choices=NETWORKS)
    group.add_argument(
        "--plans", type=Path, help="nnU-Net plans to fine-tune with: stages, channels, spacing and "
        "intensities are then theirs, and the patch unless given",
    )  # fmt: skip
    group.add_argument("--configuration", help="of the plans (3d_fullres)")
    group.add_argument("--scan-order", choices=SCAN_ORDERS, default="raster")
    group.add_argument("--unidirectional", action="store_true", help="scan from the first token")


def _add_data_arguments(group: Any) -> None:
    group.add_argument("--channels", type=int, help="of every scan (1)")
    group.add_argument("--patch", type=int, nargs=3, metavar=("D", "H", "W"), help="voxels")
    group.add_argument("--spacing", type=float, nargs=3, metavar=("D", "H", "W"), help="mm")
    group.add_argument("--intensity", choices=INTENSITIES, help="how grey values are scaled")
    group.add_argument("--crops", type=int, help="of each scan an epoch (4)")
    group.add_argument("--no-flips", dest="flips", action="store_false")
    group.add_argument("--check", choices=("headers", "voxels"), default="headers")
    group.add_argument("--on-bad", choices=("leave_out", "stop"), default="leave_out")
    group.add_argument("--cache", type=Path, help="for prepared volumes (in the run's folder)")


def _add_objective_arguments(group: Any) -> None:
    group.add_argument("--mask-ratio", type=float, default=0.75, help="hidden share (%(default)s)")
    group.add_argument("--toki", choices=FILLS, default="paper", help="fill of hidden tokens")
    group.add_argument("--no-skips", dest="skips", action="store_false")
    group.add_argument("--no-bottom-up", dest="bottom_up", action="store_false")
    group.add_argument(
        "--decoder-width", type=int, help="on the coarsest grid (twice the encoder's)"
    )
    group.add_argument(
        "--plain-target", dest="normalize", action="store_false", help="patches as they are"
    )


def run(args: argparse.Namespace) -> int:
    """Pretrain, and say where the weights are."""
    preset = VOLUMES[args.preset].options
    chosen = {name: value for name, value in vars(args).items() if value is not None}
    plan = _plan(args)
    options = {**preset, **_of_plan(plan), **chosen}
    folder: Path = args.out or Path("runs") / f"mambamim_{args.preset}"
    settings = training_settings(options, chosen)
    blueprint = Blueprint.named(
        options["network"], args.channels, plan,
        scan_order=args.scan_order, bidirectional=not args.unidirectional,
    )  # fmt: skip
    run = RunFolder(folder, {})
    if args.resume:  # refuse before all scans are looked through
        run.check_objective("mambamim")
    else:
        run.check_new()
    dataset = _dataset(args, options, folder)
    objective_options: dict[str, Any] = {name: options.get(name) for name in OBJECTIVE}
    torch.manual_seed(settings.seed)
    objective = MambaMIM(blueprint.build(), **objective_options)
    objective.token_grid(options["patch"])
    findings = dataset.findings

    def draw(output: Any, batch: Batch, path: Path) -> None:
        volume = batch["volume"].to(output.visible.device)
        draw_volumes(volume, output.visible, objective.restored(volume, output), path)

    pretrain(
        objective, dataset, folder, settings, resume=args.resume, draw=draw,
        config={
            "objective": "mambamim", "options": objective_options, "network": blueprint.plain(),
            "data": findings.fingerprint, "patch": list(options["patch"]),
            "crops": dataset.crops_per_volume, "flips": args.flips,
        },
        metadata={"objective": "mambamim", "network": blueprint.plain(),
                  "preparation": findings.preparation.plain()},
        records={"data": describe(findings)},
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        for one in dataset.left_out():
            print(f"left out when it was read: {one}")
        print(
            f"The weights are in {folder / 'best.safetensors'}. Hand them on with python -m "
            f"pretrain export {shlex.quote(str(folder))} --to nnunet --plans ... or --to bundle."
        )
    return 0


def _plan(args: argparse.Namespace) -> Plan | None:
    """The plan that was named, and its channels; refuses options that contradict it."""
    if args.plans is None:
        if args.configuration:
            raise ValueError("--configuration is of --plans; give the plans file too")
        args.channels = args.channels or 1
        return None
    if args.spacing or args.intensity:
        raise ValueError(
            "with --plans, spacing and intensities are the plan's; leave out --spacing and "
            "--intensity, or the plans"
        )
    plan = read_plan(args.plans, args.configuration or "3d_fullres")
    channels = len(plan.normalizations)
    if args.channels not in (None, channels):
        raise ValueError(f"{args.plans} is for {channels} channels, --channels {args.channels}")
    args.channels = channels
    return plan


def _of_plan(plan: Plan | None) -> dict[str, Any]:
    if plan is None:
        return {}
    return {"patch": plan.patch, "preparation": plan.preparation()}


def _dataset(args: argparse.Namespace, options: dict[str, Any], folder: Path) -> VolumeCrops:
    """Crops of the scans that can be used; which these are is written into the run's folder."""
    preparation = options.get("preparation") or Preparation(
        spacing=tuple(options["spacing"]),
        intensity=dict(INTENSITIES[options["intensity"]]),
        channels=args.channels,
    )
    scans = find_scans(args.data)
    findings = first_pass(scans, preparation, check=args.check, on_bad=args.on_bad)
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        for one in findings.left_out[:10]:
            print(f"left out: {one}")
        print(f"{len(findings.kept)} scans, {len(findings.left_out)} left out", flush=True)
    return VolumeCrops(
        findings,
        tuple(options["patch"]),
        cache=args.cache or folder / "cache",
        crops_per_volume=options.get("crops", 4),
        flips=(args.flips,) * 3,
        seed=options.get("seed", 0),
    )
