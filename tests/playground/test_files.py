"""Run files that are damaged or worse; votes as data."""

import json
import zipfile

import pytest

from playground import votes
from playground.runfile import MANIFEST, open_run, save_run

pytestmark = pytest.mark.one_backend


@pytest.fixture
def saved(shipped, tmp_path):
    return save_run(shipped / "gpt-tiny", tmp_path / "run.zip")


def test_a_run_file_is_opened(saved, tmp_path):
    opened = open_run(saved, tmp_path / "opened")
    assert sorted(path.name for path in opened.iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]


def rewritten(file, change):
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop(MANIFEST), "not saved by the playground"),
        (lambda m: m.update({MANIFEST: b"[1]"}), "not saved by the playground"),
        (lambda m: m.update({MANIFEST: b"{"}), "cannot be opened"),
        (lambda m: m.pop("model.safetensors"), "lacks model.safetensors"),
        (lambda m: m.update({"model.safetensors": b"\x80\x04pickle"}), "cannot be opened"),
        (lambda m: m.update({"model.safetensors": m["model.safetensors"][:-100]}), "cannot be opened"),
        (lambda m: m.update({"config.json": b"{}"}), "cannot be opened"),
        (lambda m: m.update({"metrics.jsonl": b"0" * (65 << 20)}), "64 MB|67 MB|68 MB"),
    ],
)
def test_a_damaged_run_file_leaves_nothing(saved, tmp_path, change, message):
    rewritten(saved, change)
    with pytest.raises(ValueError, match=message):
        open_run(saved, tmp_path / "opened")
    assert not (tmp_path / "opened").exists()


def test_what_is_no_zip(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="Save the run again"):
        open_run(tmp_path / "x.zip", tmp_path / "opened")


def test_names_with_paths_are_never_written(saved, tmp_path):
    rewritten(saved, lambda m: m.update({"../evil.txt": b"x", "/tmp/evil-of-run": b"x", "evil.py": b"x"}))
    opened = open_run(saved, tmp_path / "deep" / "opened")
    assert not list(tmp_path.rglob("evil*")) and not (opened / "evil.py").exists()


def ballot(vote, models=("a", "b"), swapped=False):
    return votes.record("To be", ("one", "two"), models, {"temperature": 1.0}, 3, vote, swapped)


def test_votes_know_which_side_was_which():
    assert (ballot("left")["chosen"], ballot("left")["rejected"], ballot("left")["vote"]) == ("one", "two", "A")
    assert (ballot("left", swapped=True)["chosen"], ballot("left", swapped=True)["vote"]) == ("two", "B")
    assert (
        ballot("right")["chosen"] == "two"
        and ballot("tie")["chosen"] is None
        and ballot("neither")["vote"] == "neither"
    )
    with pytest.raises(ValueError, match="left, right, tie, neither"):
        ballot("<script>")


def test_votes_are_counted(tmp_path):
    file = tmp_path / "deep" / "votes.jsonl"
    for vote in [ballot("left")] * 3 + [ballot("right"), ballot("tie"), ballot("left", ("b", "a"))]:
        votes.add(file, vote)
    found = votes.read(file)
    assert len(found) == 6 and set(found[0]) >= {"prompt", "chosen", "rejected", "models", "samplers", "seed"}
    assert json.loads(file.read_text().splitlines()[0]) == ballot("left")
    standing = votes.standing(found, ("a", "b"))
    assert (standing["wins"], standing["losses"], standing["ties"]) == (3, 2, 1)
    assert standing["rate"] == 0.6 and standing["low"] < 0.6 < standing["high"]


def test_wilsons_interval():
    # Wilson's interval for 10 of 20 at z = 1.96 is (0.2993, 0.7007).
    assert votes.wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=5e-5)
    assert votes.wilson(0, 0) == (0.0, 1.0) and votes.wilson(5, 5)[1] == 1.0
