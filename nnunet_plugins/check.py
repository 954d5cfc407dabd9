"""`mambamed check`: which files of an nnU-Net raw dataset would spoil a training, and why."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed check`."""
    parser.add_argument("dataset", type=Path, help="nnU-Net raw dataset folder, DatasetXXX_Name")


def run(args: argparse.Namespace) -> int:
    """Print what is wrong; 0 if nothing is, 1 otherwise."""
    problems = check_dataset(args.dataset)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems. Repair these files, or take the cases out.")
    else:
        print("Every image and label can be read, is finite and fits dataset.json.")
    return 1 if problems else 0


def check_dataset(folder: Path) -> list[str]:
    """One sentence for each training case that cannot be used; reads every file once.

    Raises:
        FileNotFoundError: If the folder is no nnU-Net raw dataset.
    """
    if not (folder / "dataset.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no dataset.json; give an nnU-Net raw dataset folder"
        )
    description = json.loads((folder / "dataset.json").read_text())
    cases = _cases(folder, description)
    if not cases:
        return [f"{folder}: no training cases found; imagesTr and labelsTr are read"]
    reader = _reader(description, next(iter(cases.values()))["images"][0])
    problems = []
    for name, files in tqdm(cases.items(), desc="Reading cases", unit="case"):
        problems += [f"{name}: {what}" for what in _case_problems(files, description, reader)]
    return problems


def _cases(folder: Path, description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    return get_filenames_of_train_images_and_targets(str(folder), description)


def _reader(description: dict[str, Any], example: str) -> Any:
    from nnunetv2.imageio.reader_writer_registry import (
        determine_reader_writer_from_dataset_json,
    )

    return determine_reader_writer_from_dataset_json(description, example, verbose=False)()


def _case_problems(
    files: dict[str, Any], description: dict[str, Any], reader: Any
) -> Iterator[str]:
    channels = len(description["channel_names"])
    if len(files["images"]) != channels:
        yield f"{len(files['images'])} image files where dataset.json names {channels} channels"
        return
    try:
        image, _ = reader.read_images(files["images"])
        label, _ = reader.read_seg(files["label"])
    except Exception as error:  # readers of every format raise their own
        yield f"cannot be read: {str(error).strip().splitlines()[-1]}"
        return
    if not np.isfinite(image).all():
        yield f"{np.count_nonzero(~np.isfinite(image))} voxels of the image are NaN or infinite"
    if image.shape[1:] != label.shape[1:]:
        yield f"the image has shape {image.shape[1:]} and the label {label.shape[1:]}"
    known = _label_values(description)
    strange = sorted(set(np.unique(label).tolist()) - known)
    if strange:
        yield f"the label holds {strange[:5]}, dataset.json only {sorted(known)}"


def _label_values(description: dict[str, Any]) -> set[int]:
    """Every value that a label file may hold; regions list several."""
    values: set[int] = set()
    for value in description["labels"].values():
        values |= set(value) if isinstance(value, list) else {value}
    return values
