"""Folds and parts that keep the cases of one patient or video together."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

FOLDS = 5

Split = dict[str, list[str]]


def grouped_splits(
    groups: Mapping[str, str], *, weights: Mapping[str, int] | None = None, folds: int = FOLDS
) -> list[Split]:
    """Folds in the form of nnU-Net's splits_final.json; no group is in both parts of one.

    The heaviest group goes first to the lightest fold, so that folds are of like weight. Equal
    arguments give equal folds. With fewer groups than folds, each group is held out once.

    Args:
        groups: Group of each case, the patient or the video.
        weights: Frames of each case; every case weighs the same if None.
        folds: Number of folds, at least two.

    Returns:
        `{"train": cases, "val": cases}` for each fold, cases sorted.

    Raises:
        ValueError: If there are fewer than two groups or folds.
    """
    members: defaultdict[str, list[str]] = defaultdict(list)
    for case, group in sorted(groups.items()):
        members[group].append(case)
    if len(members) < 2 or folds < 2:
        raise ValueError(
            f"{len(members)} groups cannot be split into {folds} folds without a leak; at least "
            "2 groups and 2 folds are needed"
        )
    weight = {
        group: sum(weights[case] if weights else 1 for case in cases)
        for group, cases in members.items()
    }
    held_out: list[list[str]] = [[] for _ in range(min(folds, len(members)))]
    load = [0] * len(held_out)
    for group in sorted(members, key=lambda group: (-weight[group], group)):
        lightest = min(range(len(load)), key=lambda fold: (load[fold], len(held_out[fold]), fold))
        held_out[lightest] += members[group]
        load[lightest] += weight[group]
    return [
        {"train": sorted(groups.keys() - set(cases)), "val": sorted(cases)} for cases in held_out
    ]


def shared_out(
    groups: Mapping[str, str],
    shares: Sequence[float],
    *,
    strata: Mapping[str, str | None] | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Cases in parts of about these shares of the groups; no group is in two parts.

    Each part gets a group of each stratum before the others are shared out. Which ones is drawn;
    equal arguments give equal parts.

    Args:
        groups: Group of each case, the patient or the video.
        shares: Of each part, positive, of any sum.
        strata: Class of each case; a group counts as the class of its first case.
        seed: Of the draw.

    Returns:
        Cases of each part, sorted.

    Raises:
        ValueError: If a part would have no group.
    """
    members: defaultdict[str, list[str]] = defaultdict(list)
    for case, group in sorted(groups.items()):
        members[group].append(case)
    alike: defaultdict[str | None, list[str]] = defaultdict(list)
    for group, cases in members.items():
        alike[strata[cases[0]] if strata else None].append(group)
    parts: list[list[str]] = [[] for _ in shares]
    rng = random.Random(seed)
    for drawn in alike.values():
        rng.shuffle(drawn)
        lacking = [share / sum(shares) * len(drawn) for share in shares]
        empty = [True] * len(shares)
        for group in drawn:
            part = max(range(len(shares)), key=lambda i: (empty[i], lacking[i], -i))
            parts[part] += members[group]
            lacking[part] -= 1
            empty[part] = False
    if not all(parts):
        raise ValueError(
            f"{len(members)} patients or videos are too few to share them out into {len(shares)} "
            "parts without a leak; name fewer parts"
        )
    return [sorted(part) for part in parts]
