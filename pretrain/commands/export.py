"""`python -m pretrain export`: pretrained weights to nnU-Net or to a bundle."""

import argparse
import shlex
from collections import Counter
from pathlib import Path

from pretrain.export import (
    prepared_alike,
    read_pretrained,
    trainer_of,
    write_bundle,
    write_nnunet,
)
from pretrain.plan import read_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("weights", type=Path, help="folder of a run, or its .safetensors file")
    parser.add_argument("--to", choices=("nnunet", "bundle"), required=True)
    parser.add_argument("--plans", type=Path, help="plans file of nnU-Net, for --to nnunet")
    parser.add_argument("--configuration", default="3d_fullres", help="of the plans (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is new (%(default)s)")
    parser.add_argument("--keys", action="store_true", help="say of each weight where it is from")
    parser.add_argument("--out", type=Path, help="the file, or the bundle's folder")


def run(args: argparse.Namespace) -> int:
    """Export, and say how to go on."""
    pretrained = read_pretrained(args.weights)
    if args.to == "bundle":
        bundle = args.out or Path("bundles") / pretrained.blueprint.network.lower()
        file = write_bundle(pretrained, bundle)
        command = (
            "python -m monai.bundle run --config_file configs/train.json --dataset_dir DATASET "
            f"--pretrained {shlex.quote(str(file.relative_to(bundle)))}"
        )
        print(
            f"{len(pretrained.weights)} tensors in {file}. Start from them in {bundle}: {command}"
        )
        return 0
    if args.plans is None:
        raise ValueError("--to nnunet needs --plans, the plans file of the preprocessed dataset")
    folder = args.weights if args.weights.is_dir() else args.weights.parent
    file = args.out or folder / "nnunet.pth"
    plan = read_plan(args.plans, args.configuration)
    origin = write_nnunet(pretrained, plan, file, args.seed)
    if args.keys:
        for name, whence in origin.items():
            print(f"{whence:12} {name}")
    if not prepared_alike(pretrained, plan):
        way = "pretrain with --plans" if pretrained.blueprint.has_stages else "clips want RGB / 255"
        print(
            "Note: nnU-Net will prepare images otherwise than they were for pretraining; "
            f"{way} for the same."
        )
    trainer = trainer_of(pretrained.blueprint)
    if trainer is None:
        print(f"Note: no trainer of ours builds this {pretrained.blueprint.network}; name yours.")
    counts = ", ".join(f"{n} {whence}" for whence, n in Counter(origin.values()).items())
    print(
        f"Tensors in {file}: {counts}. Fine-tune with nnUNetv2_train DATASET "
        f"{args.configuration} FOLD -tr {trainer or 'TRAINER'} -pretrained_weights "
        f"{shlex.quote(str(file))}"
    )
    return 0
