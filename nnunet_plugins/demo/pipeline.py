"""`mambamed demo`: plan, preprocess, train, predict and evaluate with nnU-Net's own commands.

Every stage is the command that a user would type, run in a process of its own, with its output in
a log file and its progress on the terminal. A stage whose result exists is skipped, and a training
that was interrupted continues, so that running the same command again goes on from where it was.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

PHANTOM = "Dataset999_PhantomCT"
CONFIGURATION = "3d_fullres"
FOLD = 0
EPOCHS = {"phantom": 6, "real": 20}
"""Length of a training if no trainer is named: about 4 and 15 minutes on two cores."""


@dataclass(frozen=True)
class Experiment:
    """Where everything of one demo run lies, and what is trained."""

    raw: Path
    """nnU-Net raw dataset folder."""
    work: Path
    """Folder of everything that the run writes."""
    trainer: str
    device: str

    @property
    def number(self) -> str:
        """Dataset number, as nnU-Net's commands take it."""
        return self.raw.name[7:10]

    @property
    def preprocessed(self) -> Path:
        return self.work / "preprocessed" / self.raw.name

    @property
    def results(self) -> Path:
        """Results of the trainer: plans.json, and a folder for each fold."""
        name = f"{self.trainer}__nnUNetPlans__{CONFIGURATION}"
        return self.work / "results" / self.raw.name / name

    @property
    def fold(self) -> Path:
        return self.results / f"fold_{FOLD}"

    @property
    def held_out(self) -> Path:
        """Images of the fold's validation cases, collected for prediction."""
        return self.work / "held_out" / self.raw.name

    @property
    def predictions(self) -> Path:
        return self.work / "predictions" / self.raw.name / self.trainer

    @property
    def logs(self) -> Path:
        return self.work / "logs" / self.raw.name / self.trainer

    def environment(self) -> dict[str, str]:
        """nnU-Net's paths, and threads that wait without taking a small machine's cores."""
        return os.environ | {
            "nnUNet_raw": str(self.raw.parent),
            "nnUNet_preprocessed": str(self.work / "preprocessed"),
            "nnUNet_results": str(self.work / "results"),
            "nnUNet_def_n_proc": os.environ.get("nnUNet_def_n_proc", "1"),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }


@dataclass(frozen=True)
class Stage:
    """One command, what it leaves behind, and how its progress is read off its output."""

    name: str
    command: Sequence[str]
    product: Path
    """What the stage makes, or the last of it."""
    log: Path
    """Output of the command; a record of time and success is kept beside it."""
    step: str
    """Pattern of an output line that stands for one step, or counts the steps `done`."""
    steps: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed demo`."""
    parser.add_argument(
        "--data", type=Path, help="nnU-Net raw dataset folder; a phantom CT is made if not given"
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything")
    parser.add_argument(
        "--trainer", help="any trainer of ours; HyMambaTrainer_small for a few epochs if not given"
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="the best there is")
    parser.add_argument("--cases", type=int, default=16, help="cases of the phantom")


def run(args: argparse.Namespace) -> int:
    """Run the experiment, print the Dice table and where the report is."""
    from nnunet_plugins.demo.report import dice_table, format_dice_table, write_report

    kind = "real" if args.data else "phantom"
    trainer = args.trainer or f"HyMambaTrainer_small_{EPOCHS[kind]}epochs"
    work = args.output.resolve()
    raw = _real_dataset(args.data) if args.data else _phantom(work, args.cases)
    experiment = Experiment(raw, work, trainer, args.device or _best_device())
    _check(experiment)
    timings, commands = {}, []
    for make_stage in (_plan, _train, _predict, _evaluate):
        stage = make_stage(experiment)
        timings[stage.name] = _run_stage(stage, experiment)
        commands.append(" ".join(stage.command))
    summary = experiment.predictions / "summary.json"
    report = write_report(
        title=f"{trainer} on {raw.name}, fold {FOLD}",
        commands=commands,
        results_folder=experiment.results,
        raw_dataset=raw,
        summary=summary,
        output=work / "reports" / f"{raw.name}_{trainer}.html",
        timings=timings,
    )
    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    print(f"\nDice of {trainer} on cases of {raw.name} that it has not seen:\n")
    print(format_dice_table(dice_table(summary, labels)))
    print(f"\nReport with pictures: {report}")
    return 0


def _real_dataset(folder: Path) -> Path:
    folder = folder.absolute()  # a link may bear the name that nnU-Net asks for
    if not re.fullmatch(r"Dataset\d{3}_.+", folder.name) or not (folder / "dataset.json").exists():
        raise ValueError(
            f"{folder} is no nnU-Net raw dataset: its name must be DatasetXXX_Name, and it must "
            "hold dataset.json, imagesTr and labelsTr"
        )
    return folder


def _phantom(work: Path, cases: int) -> Path:
    from nnunet_plugins.demo.phantom import write_phantom_dataset

    folder = work / "raw" / PHANTOM
    if not folder.exists():
        write_phantom_dataset(folder, cases=cases)
    return folder


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check(experiment: Experiment) -> None:
    """Read every file once before hours are spent on them."""
    from nnunet_plugins.check import check_dataset

    if experiment.preprocessed.exists():
        return
    problems = check_dataset(experiment.raw)
    if problems:
        raise ValueError("this dataset cannot be trained on:\n" + "\n".join(problems))


def _plan(experiment: Experiment) -> Stage:
    """Fingerprint, plans and preprocessed images; `splits_final.json` of the dataset is kept."""
    cases = len(list((experiment.raw / "labelsTr").iterdir()))
    return Stage(
        "Plan and preprocess",
        ["nnUNetv2_plan_and_preprocess", "-d", experiment.number, "-c", CONFIGURATION,
         "-np", "1", "-npfp", "1"],
        experiment.preprocessed / f"nnUNetPlans_{CONFIGURATION}",
        experiment.work / "logs" / experiment.raw.name / "plan.log",
        r"(?P<done>\d+)/\d+ \[",
        cases,
    )  # fmt: skip


def _train(experiment: Experiment) -> Stage:
    """Train the fold, from its latest checkpoint if there is one, and validate it."""
    resume = ["--c"] if any(experiment.fold.glob("checkpoint_*.pth")) else []
    epochs = re.search(r"_(\d+)epochs", experiment.trainer)
    return Stage(
        "Train",
        ["nnUNetv2_train", experiment.number, CONFIGURATION, str(FOLD), "-tr", experiment.trainer,
         "-device", experiment.device, *resume],
        experiment.fold / "validation" / "summary.json",
        experiment.logs / "train.log",
        r"Epoch time",
        int(epochs[1]) if epochs else 0,
    )  # fmt: skip


def _predict(experiment: Experiment) -> Stage:
    """Predict the cases that the fold held out, from their raw images."""
    splits = json.loads((experiment.preprocessed / "splits_final.json").read_text())
    cases = splits[FOLD]["val"]
    ending = json.loads((experiment.raw / "dataset.json").read_text())["file_ending"]
    experiment.held_out.mkdir(parents=True, exist_ok=True)
    for image in sorted((experiment.raw / "imagesTr").iterdir()):
        case = image.name.removesuffix(ending)[: -len("_0000")]
        link = experiment.held_out / image.name
        if case in cases and not link.exists():
            link.symlink_to(image)
    return Stage(
        "Predict",
        ["nnUNetv2_predict", "-d", experiment.number, "-c", CONFIGURATION, "-f", str(FOLD),
         "-tr", experiment.trainer, "-i", str(experiment.held_out), "-o",
         str(experiment.predictions), "-device", experiment.device, "-npp", "1", "-nps", "1",
         "--disable_tta", "--continue_prediction"],
        experiment.predictions,
        experiment.logs / "predict.log",
        r"^done with",
        len(cases),
    )  # fmt: skip


def _evaluate(experiment: Experiment) -> Stage:
    """Score the predictions against the labels."""
    return Stage(
        "Evaluate",
        ["nnUNetv2_evaluate_folder", str(experiment.raw / "labelsTr"), str(experiment.predictions),
         "-djfile", str(experiment.raw / "dataset.json"),
         "-pfile", str(experiment.results / "plans.json"), "--chill"],
        experiment.predictions / "summary.json",
        experiment.logs / "evaluate.log",
        r"$^",
        0,
    )  # fmt: skip


def _run_stage(stage: Stage, experiment: Experiment) -> float:
    """Run a stage unless it is done; the seconds that it took, earlier tries included.

    Raises:
        RuntimeError: If the command fails; quotes the end of its log.
    """
    file = stage.log.with_suffix(".json")
    record = json.loads(file.read_text()) if file.exists() else {"seconds": 0.0, "done": False}
    if record["done"] and stage.product.exists():
        print(f"{stage.name}: done before")
        return record["seconds"]
    print(f"$ {' '.join(stage.command)}")
    stage.log.parent.mkdir(parents=True, exist_ok=True)
    started, status = time.monotonic(), None
    try:
        status = _follow(stage, experiment.environment())
    finally:
        record["seconds"] += time.monotonic() - started
        record["done"] = status == 0
        file.write_text(json.dumps(record))
    if status:
        tail = "\n".join(stage.log.read_text().splitlines()[-15:])
        raise RuntimeError(f"{stage.name.lower()} failed; the end of {stage.log}:\n{tail}")
    return record["seconds"]


def _follow(stage: Stage, environment: dict[str, str]) -> int:
    """Run the command with its output in a log and its steps in a progress bar; its status."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which(stage.command[0], path=beside) or stage.command[0]
    with (
        stage.log.open("a", buffering=1) as file,
        subprocess.Popen(
            [program, *stage.command[1:]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
        tqdm(total=stage.steps or None, desc=stage.name, unit="step") as bar,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                step = re.search(stage.step, line)
                if step:
                    bar.update(int(step["done"]) - bar.n if "done" in step.groupdict() else 1)
                score = re.search(r"Pseudo dice \[(.*)\]", line)
                if score:
                    bar.set_postfix_str("Dice " + " ".join(re.findall(r"0\.\d\d|nan", score[1])))
        except KeyboardInterrupt:
            process.terminate()
            raise
        return process.wait()
