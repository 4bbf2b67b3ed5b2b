import os

import pytest

from ncsn_cli.core.errors import DivergedError, OutsideFolderError
from ncsn_cli.runs.files import path_inside, to_json, write_atomic


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deeper" / "file.json"
    for data in (b"first", b"second"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    if call == "write":
        data = object()  # no bytes
    else:
        data = b"new"

        def fail(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, call, fail)
    with pytest.raises((OSError, TypeError)):
        write_atomic(path, data)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def record(*arguments, name=name, original=original):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, record)
    write_atomic(tmp_path / "file", b"data")
    assert calls == ["fsync", "replace", "fsync"]


def test_files_have_the_usual_mode(tmp_path):
    (tmp_path / "usual").touch()
    write_atomic(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_has_no_nan():
    with pytest.raises(DivergedError, match="not finite"):
        to_json({"loss": float("nan")})


def test_new_folders_are_synced_in_the_one_above(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("ncsn_cli.runs.files._sync", synced.append)
    write_atomic(tmp_path / "new" / "newer" / "file", b"data")
    assert sorted(synced) == [tmp_path, tmp_path / "new", tmp_path / "new" / "newer"]


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write_atomic(tmp_path / "file", b"data")
    assert caught.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize("name", ["../x", "/x", "link/x", "a/../../x"])
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert path_inside(folder, "plots/x") == folder / "plots" / "x"
    with pytest.raises(OutsideFolderError):
        path_inside(folder, name)
