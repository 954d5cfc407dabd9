"""Fine-tuning against training from scratch at several shares of the labels, by nnU-Net itself.

Every training is a fold of a split made for the purpose: the same validation cases, and training
cases that are the first of a random order, so that a smaller share is part of a larger one.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student
from tqdm import tqdm

from pretrain.export import Pretrained, write_nnunet
from pretrain.plan import read_plan
from pretrain.run_folder import whole_file

ARMS = ("scratch", "pretrained")
PER_SEED = 101
"""Folds that a seed has room for, one for each percent."""


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        dataset: Name of the preprocessed dataset, such as Dataset004_Hippocampus.
        preprocessed: nnU-Net's folder of preprocessed datasets.
        raw: nnU-Net's folder of raw datasets.
        trainer: Name of the nnU-Net trainer, without a seed.
        plans: Name of the plans.
        configuration: Of the plans.
        shares: Percent of the fold's training cases.
        seeds: Of the choice of cases, of the initial weights and of the augmentation.
        fold: Of the dataset's own split, whose cases are shared out.
        validation: Most validation cases; all of the fold if None.
        device: cpu, cuda or mps.
        jobs: Trainings at a time; on a CPU they share out its cores.
    """

    dataset: str
    preprocessed: Path
    raw: Path
    trainer: str
    plans: str = "nnUNetPlans"
    configuration: str = "3d_fullres"
    shares: Sequence[int] = (10, 25, 100)
    seeds: Sequence[int] = (0, 1, 2)
    fold: int = 0
    validation: int | None = None
    device: str = "cpu"
    jobs: int = 1


@dataclass(frozen=True)
class Training:
    """One training of the study, and the mean foreground Dice that it reached."""

    arm: str
    share: int
    seed: int
    cases: int
    dice: float


@dataclass
class Summary:
    """All trainings of a study, and their table."""

    trainings: list[Training] = field(default_factory=list)

    @property
    def shares(self) -> list[int]:
        """Shares at which both arms were trained."""
        return [s for s in sorted({x.share for x in self.trainings}) if self.seeds(s)]

    def seeds(self, share: int) -> list[int]:
        """Seeds with which both arms were trained."""
        arms = [{x.seed for x in self.trainings if (x.arm, x.share) == (a, share)} for a in ARMS]
        return sorted(arms[0] & arms[1])

    def dice(self, arm: str, share: int) -> list[float]:
        """Dice of the seeds that both arms have, in their order."""
        dice = {x.seed: x.dice for x in self.trainings if (x.arm, x.share) == (arm, share)}
        return [dice[seed] for seed in self.seeds(share)]

    def table(self) -> str:
        """Markdown: mean and 95 % interval (Student's t over the seeds) of each arm and share.

        The last column is the mean of the differences at the same seed.
        """
        titles = ("labels", "cases", "seeds", *ARMS, "difference")
        rows = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
        for share in self.shares:
            cases = next(x.cases for x in self.trainings if x.share == share)
            scratch, pretrained = (self.dice(arm, share) for arm in ARMS)
            pairs = [b - a for a, b in zip(scratch, pretrained, strict=True)]
            cells = [_interval(values) for values in (scratch, pretrained, pairs)]
            rows.append(f"| {share} % | {cases} | {len(pairs)} | " + " | ".join(cells) + " |")
        return "\n".join(rows)

    def plot(self) -> Figure:
        """Dice over the share of labels, a line for each arm with its intervals."""
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.subplots()
        shares = self.shares
        for arm, marker in zip(ARMS, "os", strict=True):
            values = [self.dice(arm, share) for share in shares]
            means, widths = [mean(v) for v in values], [_half_width(v) for v in values]
            axes.errorbar(range(len(shares)), means, widths, marker=marker, capsize=3, label=arm)
        axes.set_xticks(range(len(shares)), [f"{share} %" for share in shares])
        axes.set(xlabel="labelled training cases", ylabel="mean foreground Dice")
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
        return figure


def compare(study: Study, pretrained: Pretrained, folder: Path) -> Summary:
    """Run the trainings that are not done yet, each by `nnUNetv2_train`, and sum up.

    Args:
        study: What is compared.
        pretrained: Weights to start the second arm from.
        folder: For splits, trainings, `table.md`, `trainings.csv` and `plot.png`, the latter
            three up to date after each training. A study that was stopped goes on from the
            trainings that were complete.

    Returns:
        The figures of all trainings.

    Raises:
        FileNotFoundError: If the dataset is not preprocessed.
        ValueError: If the plan does not fit the weights, or the folder is of another study.
        RuntimeError: If nnU-Net fails; names its log.
    """
    _record(study, pretrained, folder)
    folds = _write_dataset(study, folder / "preprocessed")
    plan = read_plan(
        study.preprocessed / study.dataset / f"{study.plans}.json", study.configuration
    )
    weights = {seed: folder / f"pretrained_seed{seed}.pth" for seed in study.seeds}
    for seed, file in weights.items():
        write_nnunet(pretrained, plan, file, seed)

    def train(kind: tuple[int, int, str]) -> Training:
        seed, share, arm = kind
        number, cases = folds[share, seed]
        options = ["-pretrained_weights", str(weights[seed])] if arm == "pretrained" else []
        dice = _train(study, folder, arm, number, seed, options)
        tqdm.write(f"{arm}, {share} % ({cases} cases), seed {seed}: Dice {dice:.4f}")
        return Training(arm, share, seed, cases, dice)

    kinds = list(product(study.seeds, study.shares, ARMS))
    with ThreadPoolExecutor(study.jobs) as pool:
        summary = Summary()
        for done in tqdm(pool.map(train, kinds), total=len(kinds), unit="training", disable=None):
            summary.trainings.append(done)
            _write(summary, folder)
    return summary


def _record(study: Study, pretrained: Pretrained, folder: Path) -> None:
    """Write down what is compared, or see that the folder is of the same comparison.

    Shares, seeds, jobs and the device may change: trainings that are done are used again.
    """
    digest = sha256()
    for name, tensor in sorted(pretrained.weights.items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    splits = study.preprocessed / study.dataset / "splits_final.json"
    if not splits.exists():
        raise FileNotFoundError(
            f"{splits} does not exist; run nnUNetv2_plan_and_preprocess and train once, or write "
            "the split"
        )
    own = json.loads(splits.read_text())[study.fold]
    now = {
        "dataset": study.dataset, "trainer": study.trainer, "plans": study.plans,
        "configuration": study.configuration, "train": own["train"],
        "validation": own["val"][: study.validation], "weights": digest.hexdigest(),
    }  # fmt: skip
    file = folder / "study.json"
    if file.exists():
        before = json.loads(file.read_text())
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise ValueError(
                f"{folder} holds a study with other {', '.join(changed)}; name another folder with "
                "--out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as opened:
        opened.write(json.dumps(now, indent=1).encode())


def _write_dataset(study: Study, folder: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """The preprocessed dataset with our split; of share and seed: the fold and its cases."""
    source = study.preprocessed / study.dataset
    target = folder / study.dataset
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        link = target / path.name
        if path.name != "splits_final.json" and not link.exists():
            link.symlink_to(path.resolve())
    own = json.loads((source / "splits_final.json").read_text())[study.fold]
    none: dict[str, list[str]] = {"train": [], "val": []}
    folds = [none] * (PER_SEED * (max(study.seeds) + 1))
    numbers = {}
    for seed, share, cases in _chosen(own["train"], study):
        number = PER_SEED * seed + share  # the same whatever else is compared
        numbers[share, seed] = (number, len(cases))
        folds[number] = {"train": cases, "val": own["val"][: study.validation]}
    with whole_file(target / "splits_final.json") as file:
        file.write(json.dumps(folds, indent=1).encode())
    return numbers


def _chosen(cases: Sequence[str], study: Study) -> Iterator[tuple[int, int, list[str]]]:
    for seed in study.seeds:
        order = np.random.default_rng(seed).permutation(sorted(cases)).tolist()
        for share in study.shares:
            yield seed, share, sorted(order[: max(1, round(len(order) * share / 100))])


def _train(
    study: Study, folder: Path, arm: str, fold: int, seed: int, options: Sequence[str]
) -> float:
    """Mean foreground Dice of one training on its validation cases; trains if need be."""
    trainer = f"{study.trainer}_seed{seed}"
    results = folder / arm
    model = results / study.dataset / f"{trainer}__{study.plans}__{study.configuration}"
    summary = model / f"fold_{fold}" / "validation" / "summary.json"
    if not summary.exists():
        log = folder / "logs" / f"{arm}_fold{fold}_seed{seed}.txt"
        log.parent.mkdir(exist_ok=True)
        command = [
            str(Path(sys.executable).with_name("nnUNetv2_train")), study.dataset,
            study.configuration, str(fold), "-tr", trainer, "-p", study.plans, "-device",
            study.device, *options,
        ]  # fmt: skip
        with log.open("w") as file:
            done = subprocess.run(
                command, env=_environment(study, folder, results), stdout=file,
                stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if done.returncode or not summary.exists():
            raise RuntimeError(f"{' '.join(command)} failed; its output is in {log}")
    dice: float = json.loads(summary.read_text())["foreground_mean"]["Dice"]
    return dice


def _environment(study: Study, folder: Path, results: Path) -> Mapping[str, str]:
    threads = {}
    if study.device == "cpu" and study.jobs > 1:
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // study.jobs))}
    return (
        os.environ
        | threads
        | {
            "nnUNet_raw": str(study.raw),
            "nnUNet_preprocessed": str((folder / "preprocessed").resolve()),
            "nnUNet_results": str(results.resolve()),
        }
    )


def _write(summary: Summary, folder: Path) -> None:
    with whole_file(folder / "table.md") as file:
        file.write((summary.table() + "\n").encode())
    with whole_file(folder / "plot.png") as file:
        summary.plot().savefig(file, format="png", dpi=120)
    with (folder / "trainings.csv").open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["arm", "share", "seed", "cases", "dice"])
        writer.writerows([x.arm, x.share, x.seed, x.cases, x.dice] for x in summary.trainings)


def _interval(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} +/- {_half_width(values):.3f}"


def _half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of a mean; not a number for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
