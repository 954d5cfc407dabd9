"""`mambamed check`: which files would spoil a training or a prediction, and why.

NIfTI files are read with nibabel here. ITK, through which nnU-Net reads them, fills what is missing
of a truncated file with zeros, and replaces NaN and infinite voxels by zero, all without a word.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed check`."""
    parser.add_argument(
        "folder", type=Path, help="nnU-Net raw dataset (DatasetXXX_Name), or images to predict"
    )


def run(args: argparse.Namespace) -> int:
    """Print what is wrong; 0 if nothing is, 1 otherwise."""
    is_dataset = (args.folder / "dataset.json").is_file()
    problems = check_dataset(args.folder) if is_dataset else check_images(args.folder)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems. Repair these files, or take the cases out.")
    else:
        print("Every file can be read to its end, is finite and fits the others.")
    return 1 if problems else 0


def check_images(folder: Path) -> list[str]:
    """One sentence for each image in a folder that cannot be used.

    Raises:
        FileNotFoundError: If there are no files, or no folder.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} holds no files; give a raw dataset or images")
    found = (file_problem(file) for file in tqdm(files, desc="Reading files", unit="file"))
    return [problem for problem in found if problem]


def check_dataset(folder: Path) -> list[str]:
    """One sentence for each problem of a training case of a raw dataset; reads every file.

    Raises:
        FileNotFoundError: If the folder is no nnU-Net raw dataset.
        ValueError: If its dataset.json lacks what nnU-Net needs.
    """
    if not (folder / "dataset.json").is_file():
        raise FileNotFoundError(f"{folder} holds no dataset.json; give a raw dataset")
    description = json.loads((folder / "dataset.json").read_text())
    absent = [key for key in ("channel_names", "labels", "file_ending") if key not in description]
    if absent:
        raise ValueError(f"{folder}/dataset.json lacks {', '.join(absent)}; nnU-Net v2 needs them")
    cases = _cases(folder, description)
    if not cases:
        return [f"{folder}: no training cases found; imagesTr and labelsTr are read"]
    problems = []
    for name, files in tqdm(cases.items(), desc="Reading cases", unit="case"):
        problems += [f"{name}: {what}" for what in _case_problems(files, description)]
    return problems


def _cases(folder: Path, description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    return get_filenames_of_train_images_and_targets(str(folder), description)


def _reader(description: dict[str, Any], example: str) -> Any:
    from nnunetv2.imageio.reader_writer_registry import (
        determine_reader_writer_from_dataset_json,
    )

    return determine_reader_writer_from_dataset_json(description, example, verbose=False)()


def _case_problems(files: dict[str, Any], description: dict[str, Any]) -> Iterator[str]:
    channels = len(description["channel_names"])
    if len(files["images"]) != channels:
        yield f"{len(files['images'])} image files where dataset.json names {channels} channels"
        return
    broken = [file_problem(Path(file)) for file in (*files["images"], files["label"])]
    if any(broken):
        yield from filter(None, broken)
        return
    try:
        reader = _reader(description, files["images"][0])
        image, geometry = reader.read_images(files["images"])
        label, label_geometry = reader.read_seg(files["label"])
    except Exception as error:  # readers of every format raise their own
        yield f"nnU-Net cannot read it: {_last_line(error)}"
        return
    if image.shape[1:] != label.shape[1:]:
        yield f"the image has shape {image.shape[1:]} and the label {label.shape[1:]}"
    elif not np.allclose(geometry["spacing"], label_geometry["spacing"], rtol=1e-3):
        spacings = (geometry["spacing"], label_geometry["spacing"])
        yield "image and label differ in spacing: {} and {} mm".format(*spacings)
    known = _label_values(description)
    strange = sorted({float(value) for value in np.unique(label)} - known)
    if strange:
        yield f"the label holds {strange[:5]}, dataset.json only {sorted(known)}"


def file_problem(file: Path) -> str | None:
    """What is wrong with one file, read to its end; None if nothing is."""
    try:
        voxels = _voxels(file)
    except Exception as error:  # readers of every format raise their own
        return f"{file.name} cannot be read: {_last_line(error)}"
    wrong = np.count_nonzero(~np.isfinite(voxels))
    return f"{file.name}: {wrong} voxels are NaN or infinite" if wrong else None


def _voxels(file: Path) -> NDArray[Any]:
    if file.name.endswith((".nii", ".nii.gz")):
        import nibabel

        return np.asarray(nibabel.load(file).dataobj)
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _label_values(description: dict[str, Any]) -> set[float]:
    """Every value that a label file may hold; regions list several."""
    values: set[float] = set()
    for value in description["labels"].values():
        values |= set(value) if isinstance(value, list) else {value}
    return values
