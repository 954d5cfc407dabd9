"""Which studies are held out, for ever, and that no patient is on both sides."""

import json
import random

import pytest

from nnunet_plugins.label.held_out import split_studies


def test_held_out_studies_stay_held_out(tmp_path):
    memory = tmp_path / "studies.json"
    names: list[str] = []
    held_before, trained_before = set(), set()
    for count in (2, 3, 6, 11, 12, 30):
        names = [f"study_{i}" for i in range(count)]
        parts = split_studies(dict.fromkeys(names), memory)
        assert sorted(parts.train + parts.held_out) == sorted(names)
        assert len(parts.held_out) >= count / 5
        assert held_before <= set(parts.held_out)
        assert trained_before <= set(parts.train)
        held_before, trained_before = set(parts.held_out), set(parts.train)
        assert parts.unknown == sorted(names)
        assert f"of {count} of {count} studies no patient is known" in parts.sentence
    assert split_studies(dict.fromkeys(names), memory) == parts
    with pytest.raises(ValueError, match="label two new ones"):
        split_studies({"alone": None}, tmp_path / "other.json")


@pytest.mark.parametrize("seed", range(12))
def test_no_patient_is_ever_on_both_sides(tmp_path, seed):
    """Patients of one to five studies, of which new ones are labelled before each round."""
    rng = random.Random(seed)
    whose = {f"study_{i}": f"patient_{rng.randrange(15)}" for i in range(50)}
    names, memory = list(whose), tmp_path / "studies.json"
    held_before, trained_before = set(), set()
    for count in (8, 9, 20, 35, 50):
        labelled = {name: whose[name] for name in names[:count]}
        parts = split_studies(labelled, memory)
        assert sorted(parts.train + parts.held_out) == sorted(labelled)
        assert not {whose[n] for n in parts.train} & {whose[n] for n in parts.held_out}
        assert held_before <= set(parts.held_out)
        assert trained_before <= set(parts.train)
        held_before, trained_before = set(parts.held_out), set(parts.train)
        assert (parts.unknown, parts.set_aside) == ([], [])
        assert f"of all {count} studies are known and none is on both sides" in parts.sentence
    assert 0.1 < len(parts.held_out) / 50 < 0.4
    assert "patient_" not in memory.read_text()


def test_a_patient_remains_where_it_is_when_its_older_studies_have_gone(tmp_path):
    memory = tmp_path / "studies.json"
    first = {f"study_{i}": f"p{i}" for i in range(6)}
    parts = split_studies(first, memory)
    later = {f"again_{i}": f"p{i}" for i in range(6)}
    again = split_studies(later, memory)
    assert {first[n] for n in parts.held_out} == {later[n] for n in again.held_out}
    assert {first[n] for n in parts.train} == {later[n] for n in again.train}


def test_a_patient_that_was_on_both_sides_does_not_score(tmp_path):
    """As when a table comes after rounds without one."""
    memory = tmp_path / "studies.json"
    names = [f"study_{i}" for i in range(10)]
    before = split_studies(dict.fromkeys(names), memory)
    both = {name: f"p_{name}" for name in names}
    leaking = before.held_out[0]
    both[leaking] = both[before.train[0]]
    after = split_studies(both, memory)
    assert after.set_aside == [leaking]
    assert leaking not in after.train
    assert set(before.held_out) - {leaking} <= set(after.held_out)
    assert f"their patients were trained on: {leaking}" in after.sentence
    grown = split_studies(both | {"new": both[leaking]}, memory)
    assert "new" in grown.train
    assert grown.set_aside == [leaking]


def test_a_list_from_before_patients_were_known_is_read(tmp_path):
    memory = tmp_path / "studies.json"
    memory.write_text(json.dumps({"held_out": ["a"], "trained": ["b", "c"]}))
    parts = split_studies({"a": "1", "b": "2", "c": None, "d": "1", "e": "2"}, memory)
    assert (parts.held_out, parts.train) == (["a", "d"], ["b", "c", "e"])
    assert parts.unknown == ["c"]
    assert "of 1 of 5 studies no patient is known" in parts.sentence


def test_studies_of_one_patient_are_too_few(tmp_path):
    with pytest.raises(ValueError, match=r"of different patients, or say in patients\.csv"):
        split_studies(dict.fromkeys("abcdef", "same"), tmp_path / "studies.json")
    assert not (tmp_path / "studies.json").exists()
