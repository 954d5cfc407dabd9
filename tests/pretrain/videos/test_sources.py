import json
from pathlib import Path

import pytest

from pretrain.videos import find_videos


def names(videos, top):
    return [str(Path(video.path).relative_to(top)) for video in videos]


@pytest.fixture
def corpus(tmp_path):
    """Empty files: finding opens none of them."""
    for name in (
        "b/a10.mp4", "b/a2.AVI", "b/poster.jpg", "b/deep/c.gif", "a/seq2/frames/1.png",
        "a/seq2/masks/1.png", "a/seq10/frames/1.jpg", "a/notes.txt", ".hidden/x.mp4", "b/.y.mp4",
        "b/d.mov", "b/e.mkv", "b/f.mpeg",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_are_searched_to_their_bottom_in_natural_order(corpus):
    (corpus / "b/around").symlink_to(corpus)
    videos = find_videos([corpus / "a", corpus / "b"])
    assert names(videos, corpus)[:7] == [
        "a/seq2/frames", "a/seq10/frames", "b/a2.AVI", "b/a10.mp4", "b/d.mov", "b/e.mkv",
        "b/f.mpeg",
    ]  # fmt: skip
    assert "b/deep/c.gif" in names(videos, corpus)
    assert {video.source for video in videos} == {"a", "b"}
    assert {video.weight for video in videos} == {None}
    assert videos == find_videos([corpus / "a", corpus / "b"])


def test_a_single_file_is_a_video(corpus):
    (video,) = find_videos(corpus / "b/d.mov")
    assert (video.source, video.files) == ("d", (str(corpus / "b/d.mov"),))


MANIFESTS = {
    "mix.json": json.dumps(
        [{"path": "b/d.mov", "source": "x", "weight": 2, "fps": 30},
         {"path": "a", "source": "y", "weight": "1"}]
    ),
    "object.json": json.dumps(
        {"videos": [{"path": "b/d.mov", "source": "x", "weight": 2, "fps": 30},
                    {"path": "a", "source": "y", "weight": 1}]}
    ),
    "mix.csv": "path,source,weight,fps\nb/d.mov,x,2,30\na/seq2,y,1,\na/seq10,y,,\n",
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_gives_sources_weights_and_rates(name, corpus):
    (corpus / name).write_text(MANIFESTS[name])
    videos = find_videos(corpus / name)
    assert names(videos, corpus) == ["b/d.mov", "a/seq2/frames", "a/seq10/frames"]
    assert [video.source for video in videos] == ["x", "y", "y"]
    assert [video.weight for video in videos] == [2, 1, 1]
    assert [video.fps for video in videos] == [30, None, None]


def test_a_list_of_paths_is_one_source_and_may_name_what_is_missing(corpus):
    (corpus / "mine.txt").write_text("b/d.mov\n\ngone.mp4\n")
    videos = find_videos(corpus / "mine.txt")
    assert names(videos, corpus) == ["b/d.mov", "gone.mp4"]
    assert {video.source for video in videos} == {"mine"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is no JSON"),
        ("3", "holds no list of videos"),
        ('[{"video": "a.mp4"}]', "entry without a path"),
        ('[{"path": "b/d.mov", "weight": -1}]', "the weight -1"),
        ('[{"path": "b/d.mov", "fps": "fast"}]', "the fps 'fast'"),
        ('[{"path": ".hidden/none"}, {"path": "empty"}]', "holds no video"),
        (
            '[{"path": "b/d.mov", "weight": 1}, {"path": "b/e.mkv", "weight": 2}]',
            "has the weights 1 and 2",
        ),
        (
            '[{"path": "b/d.mov", "weight": 1}, {"path": "b/e.mkv", "source": "z"}]',
            "source z has no weight and m has one",
        ),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(text, words, corpus):
    (corpus / "empty").mkdir()
    (corpus / "m.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        find_videos(corpus / "m.json")


def test_a_source_without_videos_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no videos"):
        find_videos(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_videos(tmp_path / "gone")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match="lists no videos"):
        find_videos(tmp_path / "a.json")


def test_the_template_of_mix12_has_twelve_sources():
    template = Path(__file__).parents[3] / "pretrain/docs/mix12.csv"
    rows = template.read_text().splitlines()
    assert rows[0] == "path,source,weight,fps"
    assert len({row.split(",")[1] for row in rows[1:]}) == 12
