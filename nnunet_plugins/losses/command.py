"""`mambamed affine-regressor`: train the network that Vivim's affine constraint asks."""

import argparse
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from nnunet_plugins.losses.affine import save_regressor
from nnunet_plugins.losses.affine_picture import write_picture
from nnunet_plugins.losses.affine_training import AffineAccuracy, AffineTraining, train_regressor

SMOOTHING = 0.02
"""Weight of the newest step in the loss that the bar shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed affine-regressor`."""
    usual = AffineTraining()
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--patch", type=int, default=usual.patch, help="pixels along a patch, even")
    parser.add_argument("--steps", type=int, default=usual.steps, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=usual.batch, help="pairs a step")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of weights and shapes")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps, ...")
    parser.add_argument("--picture", type=Path, help="PNG of held-out pairs, aligned by the result")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run(args: argparse.Namespace) -> int:
    """Train, write, and print how accurate the regressor is."""
    for file in filter(None, (args.out, args.picture)):
        if file.exists() and not args.overwrite:
            raise FileExistsError(f"{file} exists; name another, or replace it with --overwrite")
    options = AffineTraining(args.patch, args.steps, args.batch, seed=args.seed)
    with tqdm(total=options.steps, desc="Training", unit="step") as bar:
        shown = 0.0

        def progress(step: int, loss: float) -> None:
            nonlocal shown
            shown = loss if step == 1 else shown + SMOOTHING * (loss - shown)
            bar.update()
            bar.set_postfix(loss=f"{shown:.4f}", refresh=False)

        regressor, accuracy = train_regressor(options, args.device, progress)
    save_regressor(regressor, args.out, {**asdict(options), **asdict(accuracy)})
    print(accuracy_table(accuracy))
    print(f"\nWritten: {args.out}, {args.out.stat().st_size / 1000:.0f} kB")
    if args.picture:
        write_picture(regressor.cpu(), options, args.picture)
        print(f"Written: {args.picture}")
    return 0


def accuracy_table(accuracy: AffineAccuracy) -> str:
    """Figures on held-out pairs, a line each."""
    rows = {
        "mean absolute error of a matrix": f"{accuracy.error:.4f}",
        "  the identity guessed for all": f"{accuracy.identity_error:.4f}",
        "distance to the identity, still": f"{accuracy.still_distance:.3f}",
        "  moved": f"{accuracy.moved_distance:.3f}",
        "  blank (1.414 is right)": f"{accuracy.blank_distance:.3f}",
        "still and moved rightly ordered": f"{100 * accuracy.order:.1f} %",
    }
    return "\n".join(f"{name:<34}{value:>8}" for name, value in rows.items())
