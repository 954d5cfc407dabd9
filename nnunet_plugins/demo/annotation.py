"""`mambamed label-demo`: a bundle learns from a correction, through the server that clinics start.

Everything goes over HTTP on 127.0.0.1, as any client of MONAI Label would send it. The phantoms'
own labels stand for what a clinician would draw.
"""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_plugins.demo.annotation_client import Client, running_server
from nnunet_plugins.demo.annotation_pictures import draw_study
from nnunet_plugins.demo.phantom import write_phantom_dataset
from nnunet_plugins.demo.phantom_bundle import train_bundle
from nnunet_plugins.label.environment import problems
from nnunet_plugins.label.scores import dice, mean_dice

DATASET = "Dataset999_PhantomCT"
MODEL = "phantom_ct"
OPEN = 2
"""Studies that nobody has labelled: one is corrected, one stays unseen."""
FEWEST = 5
"""Cases: one to train the bundle, two with labels, two open."""
RATE = 1e-3
"""Learning rate of the training round, for so few and short epochs."""


@dataclass(frozen=True)
class Clinic:
    """The folder of studies, and the truth about those that have no label."""

    studies: Path
    labelled: list[str]
    truth: dict[str, Path]
    """Labels of the open studies, which the server does not see."""


@dataclass(frozen=True)
class Outcome:
    """What a demonstration found."""

    corrected: str
    report: dict[str, Any]
    """The server's on the candidate."""
    before: dict[str, float | None]
    after: dict[str, float | None]
    """Mean Dice of each open study, before the correction and after the promotion."""
    pictures: list[Path]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed label-demo`."""
    parser.add_argument("--output", type=Path, default=Path("label_demo"), help="folder for all")
    parser.add_argument("--cases", type=int, default=10, help="phantoms; %(default)s")
    parser.add_argument(
        "--epochs", type=int, default=50, help="of the bundle, before it is served; %(default)s"
    )
    parser.add_argument(
        "--round-epochs", type=int, default=8, help="of the training round; %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Show the loop, print what came out and where the pictures are.

    Raises:
        RuntimeError: If MONAI Label cannot run here, or a part of the loop fails.
        ValueError: If there are too few cases.
    """
    if reasons := list(problems()):
        raise RuntimeError("; ".join(reasons))
    say = partial(print, flush=True)
    outcome = demonstrate(args.output.resolve(), args.cases, args.epochs, args.round_epochs, say)
    for name, before in outcome.before.items():
        seen = "corrected, and learnt from" if name == outcome.corrected else "never labelled"
        print(f"{name} ({seen}): Dice {before:.3f} before, {outcome.after[name]:.3f} after")
    print("Pictures: " + ", ".join(map(str, outcome.pictures)))
    return 0


def demonstrate(
    work: Path,
    cases: int,
    epochs: int,
    round_epochs: int,
    say: Callable[[str], None] = print,
) -> Outcome:
    """One whole loop: infer, correct, train, compare, promote, infer again.

    Phantoms and bundle are kept in `work` for the next time; each time has a folder of its own for
    studies and pictures.

    Args:
        work: Folder for everything.
        cases: Phantoms; four in ten train the bundle.
        epochs: Of the bundle.
        round_epochs: Of the training round.
        say: Told about each step.

    Raises:
        ValueError: If there are too few cases.
        RuntimeError: If a part fails.
    """
    if cases < FEWEST:
        raise ValueError(f"--cases {cases} is too few to train, hold out and correct; give 5")
    say(f"1. {cases} phantoms, and a small HyMamba that learns from {_first(cases)} of them")
    raw = work / f"raw_{cases}" / DATASET
    if not raw.exists():
        write_phantom_dataset(raw, cases=cases)
    bundle = work / f"bundle_{cases}_{epochs}" / MODEL
    train_bundle(raw, bundle, _first(cases), epochs, work / "train.log")
    here = _new_folder(work)
    clinic = _open_clinic(raw, here / "studies", _first(cases))
    say(f"2. The server, over {here / 'studies'}: {len(clinic.labelled)} studies have labels")
    with running_server(clinic.studies, bundle, here / "server.log") as client:
        say(f"   {client.address}")
        return _loop(client, clinic, here, round_epochs, say)


def _loop(
    client: Client, clinic: Clinic, here: Path, epochs: int, say: Callable[[str], None]
) -> Outcome:
    corrected = client.next_study(MODEL)
    say(f"3. {MODEL} is least sure of {corrected}; it segments all open studies")
    before = _infer_open(client, clinic, here / "before")
    say(f"4. The correction of {corrected} goes back as its final label")
    client.put_label(corrected, clinic.truth[corrected])
    say(f"5. A training round of {epochs} epochs, to a candidate")
    report = client.train(MODEL, {"max_epochs": epochs, "learning_rate": RATE}, say)
    say(f"   trained on {_listed(report['trained_on'])}; held out: {_listed(report['held_out'])}")
    say(f"   {report['verdict']}")
    client.promote(MODEL, report["weights"])
    say("6. Promoted" + ("" if report["better"] else ", to show how, though it is not better"))
    after = _infer_open(client, clinic, here / "after")
    classes = client.labels(MODEL)
    pictures = [
        draw_study(
            here / "pictures" / f"{name}.png", clinic.studies / f"{name}.nii.gz",
            {"before": before[name], "correction" if name == corrected else "truth": truth,
             "after": after[name]},
            classes,
        )
        for name, truth in clinic.truth.items()
    ]  # fmt: skip
    scores = [
        {n: mean_dice([dice(truth, found[n], classes)]) for n, truth in clinic.truth.items()}
        for found in (before, after)
    ]
    return Outcome(corrected, report, *scores, pictures)


def _infer_open(client: Client, clinic: Clinic, out: Path) -> dict[str, Path]:
    out.mkdir()
    return {name: client.infer(MODEL, name, out / f"{name}.nii.gz") for name in clinic.truth}


def _open_clinic(raw: Path, studies: Path, trained: int) -> Clinic:
    """Phantoms that the bundle has not seen as studies, all but the last of them with labels."""
    names = sorted(f.name.removesuffix(".nii.gz") for f in (raw / "labelsTr").iterdir())[trained:]
    labelled, unlabelled = names[:-OPEN], names[-OPEN:]
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    for name in names:
        shutil.copyfile(raw / "imagesTr" / f"{name}_0000.nii.gz", studies / f"{name}.nii.gz")
    for name in labelled:
        shutil.copyfile(raw / "labelsTr" / f"{name}.nii.gz", final / f"{name}.nii.gz")
    truth = {name: raw / "labelsTr" / f"{name}.nii.gz" for name in unlabelled}
    return Clinic(studies, labelled, truth)


def _first(cases: int) -> int:
    return max(1, 4 * cases // 10)


def _new_folder(work: Path) -> Path:
    number = 1 + len(list(work.glob("run_*")))
    while True:
        try:
            (work / f"run_{number}").mkdir()
            return work / f"run_{number}"
        except FileExistsError:
            number += 1


def _listed(names: list[str]) -> str:
    return ", ".join(names)
