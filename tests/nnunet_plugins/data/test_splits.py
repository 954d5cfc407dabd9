import pytest

from nnunet_plugins.data import grouped_splits

GROUPS = {f"p{patient}_v{video}": f"p{patient}" for patient in range(9) for video in range(3)}


def test_no_group_is_in_both_parts_and_every_case_is_held_out_once():
    splits = grouped_splits(GROUPS)
    assert len(splits) == 5
    for fold in splits:
        assert {GROUPS[c] for c in fold["train"]}.isdisjoint(GROUPS[c] for c in fold["val"])
        assert sorted(fold["train"] + fold["val"]) == sorted(GROUPS)
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(GROUPS)


def test_folds_are_of_like_weight():
    weights = {case: 1 + 7 * (i % 5) for i, case in enumerate(GROUPS)}
    held_out = [sum(weights[c] for c in f["val"]) for f in grouped_splits(GROUPS, weights=weights)]
    heaviest = max(sum(weights[c] for c in GROUPS if GROUPS[c] == g) for g in GROUPS.values())
    assert max(held_out) - min(held_out) <= heaviest


def test_equal_arguments_give_equal_folds():
    backwards = dict(reversed(GROUPS.items()))
    assert grouped_splits(GROUPS) == grouped_splits(backwards)


def test_few_groups_are_held_out_once_each():
    splits = grouped_splits({"a1": "a", "a2": "a", "b": "b"})
    assert splits == [
        {"train": ["b"], "val": ["a1", "a2"]},
        {"train": ["a1", "a2"], "val": ["b"]},
    ]


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="without a leak"):
        grouped_splits({"a1": "a", "a2": "a"})
    with pytest.raises(ValueError, match="without a leak"):
        grouped_splits(GROUPS, folds=1)
