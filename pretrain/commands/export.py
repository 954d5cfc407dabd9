"""`python -m pretrain export`: pretrained weights to nnU-Net or to a bundle."""

import argparse
from pathlib import Path

from pretrain.export import read_pretrained, write_bundle, write_nnunet
from pretrain.plan import read_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("weights", type=Path, help="folder of a run, or its .safetensors file")
    parser.add_argument("--to", choices=("nnunet", "bundle"), required=True)
    parser.add_argument("--plans", type=Path, help="plans file of nnU-Net, for --to nnunet")
    parser.add_argument("--configuration", default="3d_fullres", help="of the plans (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is new (%(default)s)")
    parser.add_argument("--out", type=Path, help="the file, or the bundle's folder")


def run(args: argparse.Namespace) -> int:
    """Export, and say how to go on."""
    pretrained = read_pretrained(args.weights)
    if args.to == "bundle":
        file = write_bundle(pretrained, args.out or Path("bundles/hymamba"))
        print(f"{len(pretrained.weights)} tensors in {file}")
        return 0
    if args.plans is None:
        raise ValueError("--to nnunet needs --plans, the plans file of the preprocessed dataset")
    folder = args.weights if args.weights.is_dir() else args.weights.parent
    file = args.out or folder / "nnunet.pth"
    plan = read_plan(args.plans, args.configuration)
    count = write_nnunet(pretrained, plan, file, args.seed)
    print(
        f"{count} pretrained tensors in {file}. Fine-tune with nnUNetv2_train DATASET "
        f"{args.configuration} FOLD -tr TRAINER -pretrained_weights {file}"
    )
    return 0
