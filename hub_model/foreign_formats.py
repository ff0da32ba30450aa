"""Recognise files that are no pictures this package reads, by their first bytes, and say what to do with them.

Whoever renames a file, or drops what the browser saved, learns what it is.
"""

import re
import zlib

HEAD = 1024  # bytes that are looked at

PICTURE = "Save it as PNG, JPEG or TIFF."
DOCUMENT = "Export the film or slice itself as PNG, JPEG or DICOM."
VOLUME = (
    "A CT volume as NIfTI, NRRD or MetaImage is judged as a series (read_volume, screen_series, the page's series "
    "tab); of others, export the axial slices, best as DICOM."
)
ARCHIVE = "Unpack it and choose one picture."
DATA = "Save the one picture in it as PNG or TIFF."
POINTER = "Only a note of where the picture lies came. Fetch the picture itself first."
PAGE = "Instead of the picture a page about it was saved. Download the picture itself."
VIDEO = "Export the one picture to be judged."

BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000", PICTURE),
    (b"\xff\x4f\xff\x51", "JPEG 2000", PICTURE),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL", PICTURE),
    (b"\xff\x0a", "JPEG XL", PICTURE),
    (b"\xff\xd8\xff\xf7", "JPEG-LS", PICTURE),
    (b"%PDF", "PDF", DOCUMENT),
    (b"%!PS", "PostScript", DOCUMENT),
    (b"{\\rtf", "RTF", DOCUMENT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Office document", DOCUMENT),
    (b"8BPS", "Photoshop", PICTURE),
    (b"v/1\x01", "OpenEXR", PICTURE),
    (b"AT&TFORM", "DjVu", DOCUMENT),
    (b"SIMPLE  =", "FITS", DATA),
    (b"II\x2a\x00\x10\x00\x00\x00CR", "camera raw", PICTURE),
    (b"II\xbc", "JPEG XR", PICTURE),
    (b"BPG\xfb", "BPG", PICTURE),
    (b"\x00\x00\x01\x00", "icon", PICTURE),
    (b"P1", "Netpbm", PICTURE),
    (b"P2", "Netpbm", PICTURE),
    (b"P4", "Netpbm", PICTURE),
    (b"P5", "Netpbm", PICTURE),
    (b"P6", "Netpbm", PICTURE),
    (b"NRRD0", "NRRD", VOLUME),
    (b"\x93NUMPY", "NumPy", DATA),
    (b"\x89HDF\r\n\x1a\n", "HDF5", VOLUME),
    (b"CDF\x01", "MINC or NetCDF", VOLUME),
    (b"MATLAB 5.0", "MATLAB", DATA),
    (b"PAR1", "Parquet", DATA),
    (b"\x80\x02", "Python pickle", DATA),
    (b"\x80\x03", "Python pickle", DATA),
    (b"\x80\x04", "Python pickle", DATA),
    (b"\x80\x05", "Python pickle", DATA),
    (b"PK\x03\x04", "zip", ARCHIVE),
    (b"PK\x05\x06", "zip", ARCHIVE),
    (b"Rar!\x1a\x07", "RAR", ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", "7z", ARCHIVE),
    (b"BZh", "bzip2", ARCHIVE),
    (b"\xfd7zXZ\x00", "xz", ARCHIVE),
    (b"\x28\xb5\x2f\xfd", "Zstandard", ARCHIVE),
    (b"MSCF", "cabinet", ARCHIVE),
    (b"\x1a\x45\xdf\xa3", "Matroska video", VIDEO),
    (b"\x00\x00\x01\xba", "MPEG video", VIDEO),
    (b"\x00\x00\x01\xb3", "MPEG video", VIDEO),
    (b"version https://git-lfs.github.com/spec", "Git LFS pointer", POINTER),
    (b"/annex/objects/", "git-annex pointer", POINTER),
    (b"MZ", "program", DOCUMENT),
    (b"\x7fELF", "program", DOCUMENT),
)
BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), ("AVIF", PICTURE)),
    **dict.fromkeys(
        (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), ("HEIC", PICTURE)
    ),
    b"crx ": ("camera raw", PICTURE),
}


def named(head: bytes) -> tuple[str, str] | None:
    """Say what a file is, and what to do, from its first `HEAD` bytes; None where they tell nothing."""
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12], ("MP4 video", VIDEO))
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WAVE"):
        return "AVI video" if head[8:12] == b"AVI " else "WAV sound", VIDEO
    if head[:2] == b"\x1f\x8b":
        return _in_gzip(head)
    if head[257:262] == b"ustar":
        return "tar", ARCHIVE
    if volume := _volume(head):
        return volume, VOLUME
    for beginning, name, advice in BEGINNINGS:
        if head.startswith(beginning):
            office = name == "zip" and (b"[Content_Types].xml" in head or b"mimetypeapplication" in head)
            return ("Office document", DOCUMENT) if office else (name, advice)
    return _text(head)


def _in_gzip(head: bytes) -> tuple[str, str]:
    try:
        volume = _volume(zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, HEAD))
    except zlib.error:
        volume = None
    return (f"{volume} (gzip)", VOLUME) if volume else ("gzip", ARCHIVE)


def _volume(head: bytes) -> str | None:
    """Recognise NIfTI and its ancestor by the size of their header, MetaImage by its text."""
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return "NIfTI"
    if head[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c") and len(head) > 348:
        return "Analyze"
    if re.match(rb"(Comment *=[^\n]*\n)?(ObjectType *= *Image|NDims *=)", head):
        return "MetaImage"
    return None


def _text(head: bytes) -> tuple[str, str] | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "web page", PAGE
    if start.startswith((b"<svg", b"<?xml")):
        return ("SVG", PICTURE) if b"<svg" in start else ("XML", DOCUMENT)
    return None
