"""Folders are listed once each, through links, without what systems leave; names sort as people count."""

import os
from pathlib import Path

import pytest

from hub_model.folders import is_rubbish, natural, shown, walk


def made(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def below(root: Path, paths) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_linked_folders_are_listed_once_and_rubbish_is_counted(tmp_path):
    rubbish = (".ipynb_checkpoints/1-checkpoint.png", ".Trash-1000/files/1.png", "__MACOSX/own/._1.png", "own/DICOMDIR",
               "own/Thumbs.db", "@eaDir/own/1.png", "$RECYCLE.BIN/1.png", ".DS_Store")  # fmt: skip
    root = made(tmp_path / "root", "own/1.png", "own/deep/3.png", *rubbish)
    made(tmp_path / "elsewhere", "2.png", "sub/4.png")
    (root / "linked").symlink_to("../elsewhere")
    (root / "twice").symlink_to("../elsewhere/sub")
    (root / "a_link_to_own").symlink_to("own")
    (root / "own" / "circle").symlink_to(root)
    (root / "own" / "gone.png").symlink_to("nowhere.png")
    found = walk(root)
    assert below(root, found.files) == [
        "linked/2.png",
        "linked/sub/4.png",
        "own/1.png",
        "own/deep/3.png",
        "own/gone.png",
    ]
    assert below(root, found.again) == ["a_link_to_own", "own/circle", "twice"]
    assert (found.locked, found.rubbish) == ((), len(rubbish))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root, scandir = made(tmp_path, "open/1.png", "locked/2.png"), os.scandir

    def refusing(place):
        if Path(place).name == "locked":  # chmod would not stop the superuser
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    found = walk(root)
    assert (below(root, found.files), below(root, found.locked)) == (["open/1.png"], ["locked"])
    with pytest.raises(FileNotFoundError):
        walk(tmp_path / "none")


def test_a_picture_named_like_a_folder_of_rubbish_is_none(tmp_path):
    assert [name for name in ("lost+found", "DICOMDIR", "Thumbs.db") if is_rubbish(name)] == [
        "DICOMDIR",
        "Thumbs.db",
    ]
    assert is_rubbish("lost+found", is_folder=True) and not is_rubbish("DICOMDIR", is_folder=True)


def test_names_sort_as_people_count_whatever_digits_they_hold():
    names = [
        "slice 10",
        "slice 9",
        "Slice 009b",
        "2①1.png",
        "1²2.png",
        "½",
        "٣.png",
        ".",
        "",
        "a\udce9",
        "9" * 4400,
    ]
    assert sorted(names, key=natural)[0] == ""
    assert sorted(["slice 10", "slice 9", "slice 1"], key=natural) == ["slice 1", "slice 9", "slice 10"]
    assert sorted(["9" * 4400 + ".png", "10.png", "9.png"], key=natural) == [
        "9.png",
        "10.png",
        "9" * 4400 + ".png",
    ]
    assert natural("slice 007") == natural("SLICE 7")


def test_names_that_are_no_text_can_be_written_down():
    assert shown(os.fsdecode(b"a/caf\xe9.png")) == r"a/caf\xe9.png"
    assert shown(Path("胸部/é.png")) == "胸部/é.png"
