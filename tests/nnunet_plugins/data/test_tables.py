"""Tables of videos: who is in which part, and that both readers of tables take them."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from nnunet_plugins.bundle.video_table import videos_of_part
from nnunet_plugins.cli import main
from nnunet_plugins.data.splits import shared_out
from nnunet_plugins.data.tables import list_rows

GROUPS = {f"p{patient}_v{video}": f"p{patient}" for patient in range(23) for video in range(2)}


def table(*words: object) -> int:
    return main(["dataset", "table", *map(str, words)])


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("shares", [(80, 10, 10), (1, 1), (60, 15, 25), (1, 0.01, 0.01)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_group_is_in_two_parts_and_shares_are_kept(shares, seed):
    parts = shared_out(GROUPS, shares, seed=seed)
    groups = [{GROUPS[case] for case in part} for part in parts]
    assert sorted(case for part in parts for case in part) == sorted(GROUPS)
    assert sum(map(len, groups)) == len(set(GROUPS.values()))
    for found, share in zip(groups, shares, strict=True):
        assert len(found) == pytest.approx(23 * share / sum(shares), abs=2)
        assert found


def test_every_class_is_in_every_part_where_it_has_enough_groups():
    strata = {
        case: "rare" if group in ("p0", "p1", "p2") else "c" for case, group in GROUPS.items()
    }
    for seed in range(5):
        for part in shared_out(GROUPS, (80, 10, 10), strata=strata, seed=seed):
            assert {strata[case] for case in part} == {"rare", "c"}


def test_the_seed_draws_and_nothing_else():
    backwards = dict(reversed(GROUPS.items()))
    assert shared_out(GROUPS, (8, 2), seed=3) == shared_out(backwards, (8, 2), seed=3)
    assert shared_out(GROUPS, (8, 2), seed=3) != shared_out(GROUPS, (8, 2), seed=4)


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match="2 patients or videos are too few"):
        shared_out({"a": "a", "b": "b"}, (80, 10, 10))


def test_a_split_by_patient_reaches_nnunet(source, tmp_path, capsys):
    """No patient is in two parts, by the command that looks for it."""
    file, raw = tmp_path / "t" / "split.csv", tmp_path / "raw"
    assert table(source, "--out", file, "--parts", 50, 25, 25) == 0
    assert "train: 2 of 2 patients" in capsys.readouterr().out
    assert Counter(row["split"] for row in rows_of(file)) == {"train": 2, "val": 1, "test": 1}
    convert = ["dataset", "from-videos", str(file), "--id", "503", "--name", "Parts"]
    assert main([*convert, "--raw", str(raw), "--clip-length", "2"]) == 0
    dataset = raw / "Dataset503_Parts"
    (fold,) = json.loads((dataset / "splits_final.json").read_text())
    test = {path.name.rpartition("_")[0] for path in (dataset / "imagesTs").iterdir()}
    sequences = [{case.rpartition("_")[0] for case in part} for part in (*fold.values(), test)]
    assert [len(found) for found in sequences] == [2, 1, 1]
    assert len(set.union(*sequences)) == 4
    assert main(["dataset", "check-leak", str(dataset)]) == 0


def test_clips_of_a_sequence_stay_in_one_part_of_every_fold(source, tmp_path):
    raw = tmp_path / "raw"
    convert = ["dataset", "from-videos", str(source), "--id", "504", "--name", "Folds"]
    assert main([*convert, "--raw", str(raw), "--clip-length", "2"]) == 0
    folds = json.loads((raw / "Dataset504_Folds" / "splits_final.json").read_text())
    held_out = []
    for fold in folds:
        train, val = ({case.rpartition("_")[0] for case in fold[part]} for part in ("train", "val"))
        assert not train & val
        held_out += val
    assert sorted(held_out) == [f"patient{i // 2}_seq{i}" for i in range(4)]
    assert main(["dataset", "check-leak", str(raw / "Dataset504_Folds")]) == 0


@pytest.fixture
def classes(tmp_path, draw) -> Path:
    """Two classes of three videos: folders of frames, and files."""
    for number in range(3):
        images, _ = draw.video(number, frames=2)
        draw.frames(tmp_path / "tree" / "polyp" / f"p{number}", images)
        draw.lossless(tmp_path / "tree" / "no polyp" / f"n{number}.mkv", images, "bgr0")
    (tmp_path / "tree" / ".hidden").mkdir()
    return tmp_path / "tree"


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_bundles_of_classes_take_the_table_of_a_tree(classes, tmp_path, ending):
    file = classes / f"videos.{ending}"
    assert table(classes, "--classes", "--out", file, "--parts", 1, 1, 1, "--fps", 5) == 0
    seen = []
    for part in ("train", "validation", "test"):
        found = videos_of_part(file, "label", ["no polyp", "polyp"], part)
        assert sorted(video["label"] for video in found) == [0, 1]
        assert all(Path(video["image"]).exists() for video in found)
        assert all(video["fps"] == 5 for video in found)
        seen += [video["name"] for video in found]
    assert sorted(seen) == ["n0", "n1", "n2", "p0", "p1", "p2"]


def test_a_table_may_lie_elsewhere_and_leave_folds_to_the_training(classes, tmp_path):
    file = tmp_path / "elsewhere" / "videos.csv"
    assert table(classes, "--classes", "--out", file, "--group-by", r"\d") == 0
    assert "split" not in rows_of(file)[0]
    for fold in range(3):
        held = videos_of_part(file, "label", ["no polyp", "polyp"], "validation", fold)
        assert {video["name"][-1] for video in held} == {held[0]["name"][-1]}
        assert len(held) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", 0, 0, 0], "are no shares"),
        (["--parts", 80, -1, 21], "are no shares"),
        (["--group-by", "doctor"], "matches nothing"),
        (["--out", "videos.txt"], "ends neither in .csv nor in .json"),
    ],
)
def test_what_cannot_be_listed_is_refused_and_nothing_written(
    classes, tmp_path, capsys, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    assert table(classes, "--classes", "--out", "videos.csv", *words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*videos*"))


def test_a_part_without_share_is_not_there(classes):
    rows = list_rows(classes, classes=True, parts=(2, 0, 1))
    assert Counter((row.split, row.label) for row in rows) == {
        (split, label): count
        for split, count in (("train", 2), ("test", 1))
        for label in ("polyp", "no polyp")
    }


def test_a_table_is_never_written_over(classes, capsys):
    file = classes / "videos.csv"
    assert table(classes, "--classes", "--out", file) == 0
    before = file.read_bytes()
    assert table(classes, "--classes", "--out", file, "--parts", 1, 1, 1) == 1
    assert "exists; delete it or choose another" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_names_that_come_twice_are_refused(classes, draw):
    draw.frames(classes / "polyp" / "n0", draw.video(0, frames=1)[0])
    with pytest.raises(ValueError, match="two videos of different classes have one name"):
        list_rows(classes, classes=True)


def test_a_source_that_is_not_there_is_refused(tmp_path, capsys):
    for words in ([], ["--classes"]):
        assert table(tmp_path / "nowhere", "--out", tmp_path / "t.csv", *words) == 1
        assert "does not exist" in capsys.readouterr().err
