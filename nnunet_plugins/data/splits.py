"""Cross-validation folds that keep the cases of one patient or video together."""

from collections import defaultdict
from collections.abc import Mapping

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
