"""Which files make a case: images to predict, and the folds of an nnU-Net raw dataset."""

import json
from pathlib import Path
from typing import Any

from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.utils import (
    create_lists_from_splitted_dataset_folder,
    get_filenames_of_train_images_and_targets,
)

from nnunet_plugins.bundle.plan import Plan

PARTS = {"train": "train", "validation": "val"}
"""Parts of a fold, and what nnU-Net calls them in splits_final.json."""


def images_to_predict(folder: str | Path, plan: Plan) -> list[dict[str, Any]]:
    """One {"image": files, one per channel} for each case, named as for `nnUNetv2_predict`.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If a case has not one file for each channel.
    """
    folder, ending = Path(folder), plan.file_ending
    if not any(folder.glob(f"*_0000{ending}")):
        raise FileNotFoundError(
            f"{folder} holds no images called CASE_0000{ending}; name a folder of them with "
            "--dataset_dir"
        )
    cases = create_lists_from_splitted_dataset_folder(str(folder), ending)
    for files in cases:
        _check_channels(files, plan)
    return [{"image": files} for files in cases]


def cases_of_fold(
    folder: str | Path, plan: Plan, part: str, fold: int | str = 0
) -> list[dict[str, Any]]:
    """One {"image": files, "label": file} for each case of one part of a fold.

    Folds are those of `splits_final.json` in the dataset's folder, else those that nnU-Net draws.

    Args:
        folder: nnU-Net raw dataset, with imagesTr, labelsTr and dataset.json.
        plan: Whose channels the images must have.
        part: "train" or "validation".
        fold: Number of a fold, or "all", whose both parts are all cases.

    Raises:
        FileNotFoundError: If the folder is no raw dataset.
        ValueError: If there is no such fold, or a case has not one file for each channel.
    """
    folder = Path(folder)
    if not (folder / "dataset.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no dataset.json; name an nnU-Net raw dataset (imagesTr, labelsTr, "
            "dataset.json) with --dataset_dir"
        )
    files = get_filenames_of_train_images_and_targets(str(folder))
    names = sorted(files) if fold == "all" else _folds(folder, sorted(files), fold)[PARTS[part]]
    absent = [name for name in names if name not in files]
    if absent or not names:
        raise ValueError(
            f"fold {fold} of {folder} names {', '.join(absent[:3]) or 'no cases'}; repair "
            "splits_final.json or take it away"
        )
    for name in names:
        _check_channels(files[name]["images"], plan)
    return [{"image": files[n]["images"], "label": files[n]["label"]} for n in names]


def case_name(file: str | Path, plan: Plan) -> str:
    """Name of a case from the file of its first channel."""
    return Path(file).name.removesuffix(plan.file_ending).removesuffix("_0000")


def _folds(folder: Path, names: list[str], fold: int | str) -> dict[str, list[str]]:
    splits = folder / "splits_final.json"
    if splits.is_file():
        folds = json.loads(splits.read_text(encoding="utf-8"))
    elif len(names) >= 5:
        folds = generate_crossval_split(names)
    else:
        raise ValueError(
            f"{folder} has {len(names)} cases, too few for five folds; train with --fold all"
        )
    if fold not in range(len(folds)):
        raise ValueError(f"there is no fold {fold!r}; take 0 to {len(folds) - 1}, or all")
    return folds[int(fold)]


def _check_channels(files: list[str], plan: Plan) -> None:
    if len(files) != len(plan.channels):
        raise ValueError(
            f"{case_name(files[0], plan)} comes in {len(files)} files and this network takes "
            f"{len(plan.channels)} channels ({', '.join(plan.channels)}); give one file each, "
            f"called CASE_0000{plan.file_ending} and so on"
        )
