"""`mambamed evaluate video PREDICTION TRUTH`: scores of predicted videos, as CSV and HTML."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed evaluate`."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    video = kinds.add_parser(
        "video",
        help="score predicted videos against their masks",
        description="Score predicted videos; every figure is named with its protocol.",
    )
    video.add_argument(
        "prediction", type=Path, help="NAME.nii.gz of (t, h, w), or a folder NAME of PNGs a video"
    )
    video.add_argument("truth", type=Path, help="the same for the reference")
    video.add_argument("--output", type=Path, default=Path("evaluation"), help="folder to write")
    video.add_argument(
        "--probabilities", type=Path, help="NAME.npz of nnU-Net, or grey PNGs, for the VPS curves"
    )
    video.add_argument(
        "--frames", type=Path, help="pictures of the videos, for optical flow and the worst frames"
    )
    video.add_argument("--labels", type=Path, help="a dataset.json that names the classes")
    video.add_argument("--ignore", type=int, help="label of pixels whose truth is unknown")
    video.add_argument(
        "--vps",
        action=argparse.BooleanOptionalAction,
        help="figures of the video polyp protocol; given for one class if not told",
    )
    video.add_argument("--draws", type=int, default=2000, help="bootstrap samples of the videos")
    video.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def run(args: argparse.Namespace) -> int:
    """Score, write the files and print the summary."""
    from nnunet_plugins.evaluation.page import write_report
    from nnunet_plugins.evaluation.tables import summary_text
    from nnunet_plugins.evaluation.video import evaluate_videos

    report = evaluate_videos(
        args.prediction,
        args.truth,
        probabilities=args.probabilities,
        frames=args.frames,
        labels=args.labels,
        ignore=args.ignore,
        vps=args.vps,
        draws=args.draws,
        seed=args.seed,
    )
    page = write_report(
        report, args.output, title=f"{args.prediction.name} against {args.truth.name}"
    )
    print(summary_text(report))
    print("\n" + "\n".join(report.notes))
    print(f"\nCSV files and report: {page}")
    return 0
