"""`python -m pretrain label-efficiency`: does pretraining help, and with how many labels?"""

import argparse
import os
from pathlib import Path

from pretrain.export import read_pretrained
from pretrain.label_efficiency import Study, compare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("weights", type=Path, help="folder of a pretraining run, or its weights")
    parser.add_argument("dataset", help="preprocessed nnU-Net dataset, e.g. Dataset004_Hippocampus")
    parser.add_argument("--out", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--trainer", default="HyMambaTrainer_small", help="(%(default)s)")
    parser.add_argument("--plans", default="nnUNetPlans", help="their name (%(default)s)")
    parser.add_argument("--configuration", default="3d_fullres", help="(%(default)s)")
    parser.add_argument("--shares", type=int, nargs="+", default=[10, 25, 100], help="percent")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (3)")
    parser.add_argument("--fold", type=int, default=0, help="whose cases are shared out (0)")
    parser.add_argument("--validation", type=int, help="most validation cases (all of the fold)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))


def run(args: argparse.Namespace) -> int:
    """Run what is missing and print the table."""
    folders = {}
    for name in ("nnUNet_preprocessed", "nnUNet_raw"):
        if not os.environ.get(name):
            raise ValueError(f"{name} is not set; set nnU-Net's folders as for training")
        folders[name] = Path(os.environ[name])
    study = Study(
        args.dataset, folders["nnUNet_preprocessed"], folders["nnUNet_raw"], args.trainer,
        args.plans, args.configuration, args.shares, range(args.seeds), args.fold,
        args.validation, args.device, args.jobs,
    )  # fmt: skip
    print(compare(study, read_pretrained(args.weights), args.out).table())
    return 0
