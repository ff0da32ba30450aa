"""Archives of any system and of any malice: listed once, read in place, refused in words."""

import io
import os
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib

import pytest

from hub_model.archives import ArchiveRefused, Limits, is_archive, open_archive
from tests import bombs


def zipped(path, entries, method=zipfile.ZIP_DEFLATED):
    """A zip of (name, content) pairs; names as they stand, whatever zipfile would make of them."""
    with zipfile.ZipFile(path, "w", method) as target:
        for name, content in entries:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, method
            with pytest.warns(UserWarning) if name in target.namelist() else _nothing():
                target.writestr(info, content)
    return path


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def patched(path, old: bytes, new: bytes):
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def names(path, **limits):
    with open_archive(path, Limits(**limits)) as archive:
        return [member.name for member in archive.members]


def contents(path):
    with open_archive(path) as archive:
        return [archive.read(member) for member in archive.members]


def refusal(path, **limits):
    with pytest.raises(ArchiveRefused) as caught, open_archive(path, Limits(**limits)) as archive:
        for member in archive.members:
            archive.read(member)
    return caught.value.reason.code


# --- what may come ----------------------------------------------------------------------------------


def test_one_name_twice_is_two_members(tmp_path):
    path = zipped(tmp_path / "a.zip", [("slice.png", b"one"), ("slice.png", b"two"), ("SLICE.png", b"three")])
    assert names(path) == ["slice.png", "slice.png", "SLICE.png"] and contents(path) == [
        b"one",
        b"two",
        b"three",
    ]


def test_odd_names_end_nothing(tmp_path):
    odd = [
        ".",
        "./",
        "",
        "//",
        "2①1.png",
        "1²2.png",
        "9" * 4400 + ".png",
        "a//b/./c.png",
        "new\nline.png",
        "../up.png",
    ]
    path = zipped(tmp_path / "a.zip", [("fine.png", b"x"), *((name, b"x") for name in odd)])
    found = names(path)
    assert found == [
        "fine.png",
        "2①1.png",
        "1²2.png",
        "9" * 4400 + ".png",
        "a/b/c.png",
        "new\nline.png",
        "../up.png",
    ]
    assert len(contents(path)) == len(found)
    with open_archive(path) as archive:
        assert [member.name for member in archive.members if member.outside] == ["../up.png"]


def test_rubbish_is_left_out_and_counted(tmp_path):
    rubbish = ["__MACOSX/CT/._1.png", "CT/.DS_Store", "CT/Thumbs.db", "DICOMDIR", ".ipynb_checkpoints/1.png"]
    path = zipped(tmp_path / "a.zip", [("CT/1.png", b"x"), ("CT/", b""), *((name, b"x") for name in rubbish)])
    with open_archive(path) as archive:
        assert ([member.name for member in archive.members], archive.rubbish) == (["CT/1.png"], 5)


def test_names_of_other_systems(tmp_path):
    path = zipped(tmp_path / "a.zip", [("CT\\COVID\\1.png", b"x"), ("CT\\empty\\", b"")])
    assert names(path) == ["CT/COVID/1.png"]
    name = "CT/新冠/胸部 é.png"
    path = zipped(
        tmp_path / "b.zip", [("C" * len(name.encode()), b"x")]
    )  # UTF-8 without its flag, as macOS writes
    assert names(patched(path, b"C" * len(name.encode()), name.encode())) == [name]
    path = zipped(tmp_path / "c.zip", [("caf_.png", b"x")])  # code page 437, as DOS wrote
    assert names(patched(path, b"caf_", "café".encode("cp437"))) == ["café.png"]
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as target:  # Info-ZIP's extra field
        info = zipfile.ZipInfo("x.png")
        info.extra = (
            struct.pack("<HHBI", 0x7075, 5 + len("я.png".encode()), 1, zlib.crc32(b"x.png"))
            + "я.png".encode()
        )
        target.writestr(info, b"x")
    assert names(tmp_path / "d.zip") == ["я.png"]


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_method_of_python_is_read(tmp_path, method):
    content = os.urandom(70_000) + bytes(300_000)
    path = zipped(tmp_path / "a.zip", [("1.png", content)], method)
    assert contents(path) == [content]
    with open_archive(path) as archive:
        assert archive.head(archive.members[0], 132) == content[:132]


@pytest.mark.parametrize("kind", ["", ":gz", ":bz2", ":xz"])
def test_tars_are_archives_like_zips(tmp_path, kind):
    path = tmp_path / f"a.tar{kind.replace(':', '.')}"
    with tarfile.open(path, f"w{kind}") as target:
        for name, content in [
            ("./CT/1.png", b"one"),
            ("CT/.hidden", b"x"),
            ("CT/2.png", b"two"),
            ("../3.png", b"x"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("CT/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        target.addfile(link)
    assert is_archive(path) and is_archive(path.rename(tmp_path / "without_suffix"))
    with open_archive(tmp_path / "without_suffix") as archive:
        one, two, outside, link = archive.members
        assert (one.name, two.name, archive.rubbish) == ("CT/1.png", "CT/2.png", 1)
        assert (archive.read(two), archive.read(one), archive.head(two, 2)) == (b"two", b"one", b"tw")
        assert outside.outside and link.outside
        with pytest.raises(ArchiveRefused, match="it is a link"):
            archive.read(link)


def test_what_is_an_archive_by_its_name_or_content(tmp_path):
    zipped(tmp_path / "plain", [("1.png", b"x")])
    zipped(tmp_path / "letter.docx", [("1.png", b"x")])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" + (tmp_path / "plain").read_bytes())
    (tmp_path / "text").write_bytes(b"text")
    assert [is_archive(path) for path in sorted(tmp_path.iterdir())] == [False, False, True, False]
    assert not is_archive(tmp_path / "none.zip")


def test_threads_may_share_one(tmp_path):
    entries = [(f"{n}.png", os.urandom(50_000)) for n in range(8)]
    with open_archive(zipped(tmp_path / "a.zip", entries)) as archive:
        found = {}
        threads = [
            threading.Thread(target=lambda m=member: found.update({m.name: archive.read(m)}))
            for member in archive.members
        ]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert found == dict(entries)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED]
)
def test_damage_is_a_refusal_of_that_member_alone(tmp_path, method):
    path = zipped(tmp_path / "a.zip", [("1.png", os.urandom(5000)), ("2.png", b"whole")], method)
    content = bytearray(path.read_bytes())
    content[60:400] = b"\xff" * 340
    path.write_bytes(content)
    with open_archive(path) as archive:
        first, second = archive.members
        with pytest.raises(ArchiveRefused) as caught:
            archive.read(first)
        assert caught.value.reason.code == "member_damaged"
        assert archive.read(second) == b"whole"


def test_password_and_method_are_told_apart(tmp_path):
    path = zipped(tmp_path / "a.zip", [("1.png", b"x" * 50)], zipfile.ZIP_STORED)
    content = path.read_bytes()
    central = content.index(b"PK\x01\x02")
    for number, (where, value) in enumerate([(8, 1), (10, 9), (10, 98)]):
        changed = bytearray(content)
        changed[central + where : central + where + 2] = struct.pack("<H", value)
        changed[where - 2 : where] = struct.pack("<H", value)
        (tmp_path / f"{number}.zip").write_bytes(changed)
    assert refusal(tmp_path / "0.zip") == "archive_locked"
    assert refusal(tmp_path / "1.zip") == refusal(tmp_path / "2.zip") == "archive_method"
    with open_archive(tmp_path / "1.zip") as archive, pytest.raises(ArchiveRefused, match="Deflate64"):
        archive.read(archive.members[0])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"no zip", bytes(range(256)) * 8],
                         ids=["empty", "start", "empty zip", "text", "bytes"])  # fmt: skip
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    try:
        assert names(tmp_path / "a.zip") == []  # an empty zip is one
    except ArchiveRefused as error:
        assert error.reason.code == "archive_damaged"
    (tmp_path / "a.tar").write_bytes(content or b"x")
    if not content.startswith(b"PK"):
        assert refusal(tmp_path / "a.tar") == "archive_damaged"


def test_entries_are_limited_before_they_are_listed(tmp_path):
    path = zipped(tmp_path / "a.zip", [(f".hidden{n}", b"") for n in range(60)])
    assert refusal(path, entries=50) == "archive_entries"
    assert names(path, entries=60) == []
    big = bombs.entries(tmp_path / "b.zip")
    tracemalloc.start()
    assert refusal(big, entries=10_000) == "archive_entries"  # whatever number the archive claims
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()


def test_sizes_are_limited_before_anything_is_unpacked(tmp_path):
    path = zipped(tmp_path / "a.zip", [("1.png", bytes(3_000_000)), ("2.png", bytes(10))])
    assert refusal(path, unpacked_bytes=2_000_000) == "archive_too_large"
    assert refusal(path, member_bytes=2_000_000) == "member_too_large"
    tar = tmp_path / "a.tar.gz"
    with tarfile.open(tar, "w:gz") as target:
        info = tarfile.TarInfo("1.png")
        info.size = 3_000_000
        target.addfile(info, io.BytesIO(bytes(info.size)))
    assert refusal(tar, unpacked_bytes=2_000_000) == "archive_too_large"
    assert refusal(tar, member_bytes=2_000_000) == "member_too_large"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_holds_more_than_it_says_takes_no_memory(tmp_path, method):
    with open_archive(bombs.lying_member(tmp_path / "a.zip", 60 * 2**20, method)) as archive:
        tracemalloc.start()
        with pytest.raises(ArchiveRefused, match="damaged"):
            archive.read(archive.members[0])
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        tracemalloc.stop()


def test_a_tar_header_that_asks_for_gigabytes_takes_no_memory(tmp_path):
    assert refusal(bombs.asking_tar(tmp_path / "a.tar.gz")) == "member_too_large"


def test_overlapping_entries_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", [("1.png", bytes(5000)), ("2.png", bytes(5000))], zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<I", 0)  # the second entry shares the first one's bytes
    path.write_bytes(content)
    assert refusal(path) == "archive_overlap"


def test_names_with_a_broken_utf8_flag_are_a_refusal(tmp_path):
    path = zipped(tmp_path / "a.zip", [("é.png", b"x")])
    assert refusal(patched(path, "é".encode(), b"\xff\xfe")) == "archive_damaged"
