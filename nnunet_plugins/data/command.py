"""`mambamed dataset`: videos into nnU-Net and back, and whether a split leaks."""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

from nnunet_plugins.data.cases import CaseRecord, Cutting
from nnunet_plugins.data.from_videos import (
    SPLITS_JSON,
    convert_images,
    convert_videos,
    dataset_folder,
    named_dataset,
)
from nnunet_plugins.data.leaks import ALIKE, check_leaks, dataset_of
from nnunet_plugins.data.masks import LabelScheme
from nnunet_plugins.data.sources import find_videos
from nnunet_plugins.data.tables import Row, list_rows, write_table
from nnunet_plugins.data.to_videos import write_predictions

LAYOUTS = (
    "folder with NAME/frames and NAME/masks for each video; or videos/NAME.mp4 and masks/NAME; or "
    "a CSV or JSON table with the columns video, masks, patient, split (train, val, test), name"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed dataset`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_from_videos(actions.add_parser("from-videos", help="videos and masks to a raw dataset"))
    _add_table(actions.add_parser("table", help="list videos in a table, with a split if wanted"))
    _add_images(actions.add_parser("images", help="videos alone to a folder for nnUNetv2_predict"))
    _add_to_videos(actions.add_parser("to-videos", help="predictions to masks and overlay videos"))
    _add_check_leak(actions.add_parser("check-leak", help="patients or pictures in both parts"))


def run(args: argparse.Namespace) -> int:
    """Run one action and return its exit status."""
    actions = {
        "from-videos": _from_videos,
        "table": _table,
        "images": _images,
        "to-videos": _to_videos,
        "check-leak": _check_leak,
    }
    return actions[args.action](args)


def _add_cutting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="keep every Nth frame")
    parser.add_argument(
        "--clip-length", type=int, metavar="N", help="cut videos into clips of at most N frames"
    )
    parser.add_argument(
        "--first-number", type=int, default=1, metavar="N",
        help="number of a video file's first frame in the names of its masks (1)",
    )  # fmt: skip


def _add_from_videos(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=LAYOUTS)
    parser.add_argument("--id", type=int, required=True, help="number of the new dataset")
    parser.add_argument("--name", required=True, help="name of the new dataset")
    parser.add_argument("--raw", type=Path, help="folder of raw datasets; nnUNet_raw if not given")
    parser.add_argument(
        "--labels", nargs="+", default=["foreground"], metavar="CLASS",
        help="names of classes 1, 2, ...; with one, masks are 0 and 255, with more, the grey "
        "value is the class",
    )  # fmt: skip
    parser.add_argument(
        "--ignore-unlabelled", action="store_true", help="frames without a mask are not trained on"
    )
    _add_grouping(parser)
    parser.add_argument(
        "--split-clips", action="store_true",
        help="spread clips of one video over training and validation: a leak, for trials only",
    )  # fmt: skip
    _add_cutting(parser)


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=LAYOUTS)
    parser.add_argument("--out", type=Path, required=True, help="table to write, .csv or .json")
    parser.add_argument(
        "--classes", action="store_true",
        help="each folder in the source is a class, with videos as above in it",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the patients, as 80 10 10, of each class; 0 for no such part",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    _add_grouping(parser)


def _add_grouping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fps", type=float, help="frame rate of folders of frames")
    parser.add_argument(
        "--group-by", metavar="REGEX",
        help=r"finds the patient in a video's name, as '^(patient\d+)'; each video is one if not "
        "given",
    )  # fmt: skip


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a video, a folder of frames or of videos")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    _add_cutting(parser)


def _add_to_videos(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", type=Path, help="folder that nnUNetv2_predict wrote")
    parser.add_argument(
        "--dataset", type=named_dataset, required=True,
        help="raw dataset trained on: a folder, or a number or name in nnUNet_raw",
    )  # fmt: skip
    parser.add_argument("--images", type=Path, help="folder of `images` that was predicted")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument("--fps", type=float, help="of the overlays; the source's if not given")
    parser.add_argument("--no-overlay", action="store_true", help="masks only")


def _add_check_leak(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=named_dataset,
        help="raw dataset made from videos (a folder, or a number or name in nnUNet_raw), or a "
        "splits file",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", type=named_dataset, help="raw dataset of a splits file that lies apart"
    )
    parser.add_argument(
        "--alike", type=float, default=ALIKE, help=f"correlation of equal pictures ({ALIKE})"
    )
    parser.add_argument("--no-pictures", action="store_true", help="compare names only")


def _from_videos(args: argparse.Namespace) -> int:
    folder = dataset_folder(args.id, args.name, args.raw)
    videos = find_videos(args.source, group_by=args.group_by, fps=args.fps)
    records = convert_videos(
        videos,
        folder,
        scheme=LabelScheme(tuple(args.labels), args.ignore_unlabelled),
        cutting=Cutting(args.stride, args.clip_length, args.first_number),
        split_clips=args.split_clips,
    )
    _print_notes(records)
    print(f"{folder}: {_counted(records)}")
    if args.split_clips:
        print("Clips of one video are in training and validation: scores will flatter.")
    if (folder / SPLITS_JSON).exists():
        folds = len(json.loads((folder / SPLITS_JSON).read_text(encoding="utf-8")))
        print(f"{SPLITS_JSON} has {folds} folds; beyond them nnU-Net would split at random.")
        print(
            f"Next: nnUNetv2_plan_and_preprocess -d {args.id} -c 3d_fullres -pl VivimPlanner; it "
            f"takes {SPLITS_JSON} along."
        )
        print(
            f"Then: nnUNetv2_train {args.id} 3d_fullres 0 -p nnUNetVivimPlans -tr VivimTrainer, or "
            "VivimTrainer_small with -device cpu."
        )
    else:
        print(f"One patient only, so no {SPLITS_JSON}: train with fold all, or --split-clips.")
    return 0


def _table(args: argparse.Namespace) -> int:
    """Write a table and print how many videos and patients of each class each part has."""
    rows = list_rows(
        args.source,
        classes=args.classes,
        group_by=args.group_by,
        fps=args.fps,
        parts=args.parts,
        seed=args.seed,
    )
    write_table(rows, args.out)
    print(f"{args.out}: {len(rows)} videos")
    parts: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts[" ".join(filter(None, (row.split, row.label))) or "no split"].append(row)
    for name, listed in sorted(parts.items()):
        print(f"{name}: {len(listed)} of {len({row.video.group for row in listed})} patients")
    return 0


def _images(args: argparse.Namespace) -> int:
    cutting = Cutting(args.stride, args.clip_length, args.first_number)
    records = convert_images(find_videos(args.source), args.out, cutting=cutting)
    _print_notes(records)
    print(f"{args.out}: {_counted(records)}")
    print("Next: nnUNetv2_predict -i of this folder, then mambamed dataset to-videos --images it.")
    return 0


def _to_videos(args: argparse.Namespace) -> int:
    names = write_predictions(
        args.predictions,
        args.dataset,
        args.out,
        images=args.images,
        fps=args.fps,
        overlay=not args.no_overlay,
    )
    print(f"{args.out}: {len(names)} videos")
    return 0


def _check_leak(args: argparse.Namespace) -> int:
    """Print the leaks; 1 if there are any."""
    dataset, splits = (args.dataset, args.path) if args.dataset else dataset_of(args.path)
    leaks = check_leaks(dataset, splits=splits, alike=args.alike, pictures=not args.no_pictures)
    for leak in leaks:
        print(leak)
    print(f"{len(leaks)} leaks." if leaks else "No patient and no picture is in two parts.")
    return 1 if leaks else 0


def _print_notes(records: dict[str, CaseRecord]) -> None:
    for video, notes in {record.video: record.notes for record in records.values()}.items():
        for note in notes:
            print(f"{video}: {note}")


def _counted(records: dict[str, CaseRecord]) -> str:
    frames = sum(len(record.frames) for record in records.values())
    labelled = sum(len(record.labelled) for record in records.values())
    videos = len({record.video for record in records.values()})
    patients = len({record.group for record in records.values()})
    parts = Counter("test" if r.split == "test" else "training" for r in records.values())
    cases = ", ".join(f"{number} {part} cases" for part, number in parts.items())
    return (
        f"{cases} of {videos} videos, {patients} patients; {labelled} of {frames} frames labelled"
    )
