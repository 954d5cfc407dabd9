"""What `python -m monai.bundle run` calls: errors a user can mend are one sentence, not a stack.

MONAI wraps every error of a configuration in its own. A `SystemExit` passes through, so these
functions end the command with the sentence; other programs that read a bundle call its engines.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine

from nnunet_plugins.bundle.cases import cases_of_fold, images_to_predict
from nnunet_plugins.bundle.inferer import VideoInferer
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.bundle.video import videos_to_segment
from nnunet_plugins.bundle.video_table import Target, videos_of_part
from nnunet_plugins.process_group import leave_group

MENDABLE = (OSError, ValueError, RuntimeError)


def find_bundle_root(name: str) -> str:
    """Folder of the bundle: that of the configuration which is run, or one of its name here.

    `monai.bundle` does not tell a configuration where its file is; the command line does. Where it
    is in none of these, the working folder; its missing files are then named by who needs them.
    """
    files = re.findall(r"[^'\"\[\],=]+\.(?:json|ya?ml)", " ".join(sys.argv[1:]).replace(" ", ","))
    run = [str(Path(file).parent.parent) for file in files if Path(file).parent.name == "configs"]
    candidates = [*run, ".", name, f"bundles/{name}"]
    found = (c for c in candidates if Path(c, "configs", "inference.json").is_file())
    return next(found, ".")


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def load_plan(bundle_root: str, configuration: str) -> Plan:
    """The plan that lies in a bundle's configs."""
    with one_sentence():
        configs = Path(bundle_root, "configs")
        if not (configs / "plans.json").is_file():
            raise FileNotFoundError(
                f"{configs}/plans.json does not exist; run this inside the bundle's folder or "
                "name that with --bundle_root"
            )
        return Plan(configs, configuration)


def read_classes(bundle_root: str) -> list[str]:
    """Names of a bundle's classes in the order of its logits, from its `configs/dataset.json`."""
    with one_sentence():
        file = Path(bundle_root, "configs", "dataset.json")
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} does not exist; run this inside the bundle's folder or name that with "
                "--bundle_root"
            )
        labels = json.loads(file.read_text(encoding="utf-8"))["labels"]
        if sorted(labels.values()) != list(range(len(labels))):
            raise ValueError(f"{file} numbers its labels {list(labels.values())}; count from 0")
        return sorted(labels, key=labels.__getitem__)


def check_weights(path: str) -> None:
    """End the command if there are no weights."""
    with one_sentence():
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} does not exist, this bundle has no weights yet; put those of a training "
                "into a bundle with `mambamed export-bundle --results RESULTS_FOLDER --out "
                "BUNDLE`, train with configs/train.json, or name another file with --ckpt_path"
            )


def list_images(folder: str, plan: Plan) -> list[dict]:
    """`images_to_predict`, ending the command if there are none."""
    with one_sentence():
        return images_to_predict(folder, plan)


def list_videos(source: str) -> list[dict]:
    """`videos_to_segment`, ending the command if there are none."""
    with one_sentence():
        return videos_to_segment(source)


def list_labelled_videos(
    table: str, target: Target, classes: Sequence[str], part: str, fold: int = 0
) -> list[dict]:
    """`videos_of_part`, ending the command if there are none, or fewer than processes."""
    with one_sentence():
        videos = videos_of_part(table, target, classes, part, fold)
        _check_processes(len(videos), f"{table} has {len(videos)} videos for {part}")
        return videos


def list_cases(folder: str, plan: Plan, part: str, fold: int | str = 0) -> list[dict]:
    """`cases_of_fold`, ending the command if there are none, or fewer than processes."""
    with one_sentence():
        cases = cases_of_fold(folder, plan, part, fold)
        _check_processes(
            len(cases), f"fold {fold} has {len(cases)} cases for {part}", ", or take --fold all"
        )
        return cases


def video_inferer(
    plan: Plan, mirror_axes: Sequence[int] | None = None, overlap: float = 0.5
) -> VideoInferer:
    """A `VideoInferer`, ending the command if its options cannot be."""
    with one_sentence():
        return VideoInferer(plan, mirror_axes, overlap)


def run(engine: Engine) -> None:
    """Run a trainer or an evaluator."""
    try:
        with one_sentence():
            engine.run()
    finally:
        leave_group(engine.network)


def _check_processes(found: int, what: str, or_else: str = "") -> None:
    """Every process needs something to work on."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if found < processes:
        raise ValueError(
            f"{what} and there are {processes} processes; start fewer with --nproc_per_node"
            f"{or_else}"
        )


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn an error a user can mend into the end of the program, with its first cause."""
    try:
        yield
    except MENDABLE as error:
        cause = first_cause(error)
        if not isinstance(cause, MENDABLE) or not str(cause).strip():
            raise
        raise SystemExit(str(cause)) from error


def first_cause(error: BaseException) -> BaseException:
    """The error that others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
