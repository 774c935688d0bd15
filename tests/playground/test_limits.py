"""What comes from a browser is checked, whatever the page allows; sessions are apart."""

import math

import pytest

from playground.limits import checked_prompt, checked_training_text, number, one_of, read_upload
from playground.sessions import Sessions, is_session_id

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize("text", ["Hello 🐈‍⬛", "مرحبا بالعالم", "<script>alert(1)</script>", "x"])
def test_any_text_is_a_prompt(text):
    assert checked_prompt(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        (None, "is empty"),
        (7, "is empty"),
        ("x" * 2001, "2,001 char"),
        ("\ud800", "half"),
    ],
)
def test_what_is_no_prompt_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        checked_prompt(text)


@pytest.mark.parametrize(("text", "message"), [("", "no text"), ("a", "1 characters"), ("a" * 1_000_001, "1,000,001")])
def test_a_text_to_train_on_has_a_length(text, message):
    with pytest.raises(ValueError, match=message):
        checked_training_text(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 11, "3", None, True, [1]])
def test_numbers_are_in_range(value):
    with pytest.raises(ValueError, match="`steps` must be"):
        number("steps", value, 0, 10)


def test_numbers_and_words_pass():
    assert number("steps", 3.0, 0, 10, whole=True) == 3 and isinstance(number("steps", 3.0, 0, 10, whole=True), int)
    with pytest.raises(ValueError, match="whole number"):
        number("steps", 2.5, 0, 10, whole=True)
    with pytest.raises(ValueError, match=r"one of GPT, T5.*'\.\./etc"):
        one_of("family", "../etc", ("GPT", "T5"))


def test_uploads_are_text_of_some_size(tmp_path):
    file = tmp_path / "up.txt"
    file.write_bytes(b"\xef\xbb\xbf" + b"word " * 100)
    assert read_upload(file) == "word " * 100
    for content, message in [
        (b"\xff\xfe\x00" * 100, "not UTF-8"),
        (b"a\0" * 200, "zero bytes"),
        (b"a" * (5 << 20), "5.2 MB"),
    ]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_upload(file)


def test_sessions_are_apart_and_few(tmp_path):
    sessions = Sessions(tmp_path, most=4)
    ids = [sessions.new_id() for _ in range(200)]
    assert all(map(is_session_id, ids)) and len(set(ids)) == 200
    folders = {sessions.get(each).folder for each in ids}
    assert len(folders) == 200 and len(sessions) == 4
    assert not list(tmp_path.iterdir())  # Folders are made with the first run.
    run = sessions.get(ids[0]).new_run()
    assert run.name == "run-1" and sessions.get(ids[0]).runs() == [run] and sessions.get(ids[1]).runs() == []
    with pytest.raises(ValueError, match="no run"):
        sessions.get(ids[1]).run("run-1")
    assert not any(ids[0] in str(path) for path in tmp_path.rglob("*"))  # A listing gives no id away.


@pytest.mark.parametrize("value", ["", None, "../../etc", "a" * 31, "a" * 33, "a" * 31 + "/", {"a": 1}])
def test_what_is_no_session(tmp_path, value):
    with pytest.raises(ValueError, match="Load it again"):
        Sessions(tmp_path).get(value)


@pytest.mark.parametrize("name", ["..", "run-1/../../x", "/etc", None, "run-2"])
def test_runs_are_named_not_pathed(tmp_path, name):
    session = Sessions(tmp_path).get("a" * 32)
    session.new_run()
    with pytest.raises(ValueError, match="There is no run"):
        session.delete_run(name)


def test_a_session_has_so_many_runs(tmp_path):
    session = Sessions(tmp_path).get("a" * 32)
    for _ in range(8):
        session.new_run()
    with pytest.raises(ValueError, match="Delete one"):
        session.new_run()
    session.delete_run("run-3")
    assert session.new_run().name == "run-9"
