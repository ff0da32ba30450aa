"""What the names of folders and files say: class, modality and split, and which files are no pictures to learn
from."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from .files import DataRefused, File, dicom_tags, is_picture
from .labels import DICOM_MODALITIES, LAYOUT, MODALITY_NAMES, SPLIT_NAMES, Reader, Row, exact, listed

MASK = "a mask, not a picture"
LATERAL = "a lateral view"
OTHER_PLANE = "a coronal or sagittal view"
SIDE_VIEWS = {
    **dict.fromkeys(
        ("l", "ll", "rl", "lat", "lateral", "leftlateral", "rightlateral", "lllateral", "rllateral"), LATERAL
    ),
    **dict.fromkeys(("coronal", "sagittal"), OTHER_PLANE),
}
"""What a table or a DICOM file calls views that are not learnt from, as `exact` writes them."""

MASK_FOLDERS = re.compile(
    r"(lung|infection|lesion|gt|binary|covid|left|right)*(masks?|groundtruths?|segmentations?|annotations?|contours?)"
)
MASK_FOLDERS_BESIDE_IMAGES = frozenset(
    {"label", "labels", "gt", "gts", "seg", "segs", "roi", "rois", "labelstr"}
)
IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs", "imagestr", "frames", "cxr", "slices"})
MASK_STEM = re.compile(
    r"(?:.+[\s_.-])?(?:lung|infection|lesion|gt)?[\s_.-]*(?:masks?|segmentation|annotation)[\s_.-]*[0-9]*"
)
MASK_STEM_OF_A_TWIN = re.compile(r"(?P<of>.+?)[\s_.-]+(?:gt|seg|label|labels|roi)")
LATERAL_NAME = re.compile(r"(?<![^\W\d_])lateral(?![^\W\d_])")
COMPANY = re.compile(
    r"patients?|persons?|subjects?|cases?|scans?|series|study|studies|images?|pictures?|slices?|films?|sets?|parts?"
    r"|ct|xray|cxr|\d|[\W_]"
)
"""What may stand beside a class name in the name of a patient's folder."""

KNOWN_FOLDERS = MODALITY_NAMES.keys() | SPLIT_NAMES.keys() | IMAGE_FOLDERS


def layout_rows(files: Sequence[File], reader: Reader) -> list[Row]:
    """Make rows of the documented layout or of a plain two-folder tree.

    Raises:
        DataRefused: pictures lie where no folder name says class and modality; nothing is guessed.
    """
    rows, unknown = [], Counter()
    classes, reasons = _class_levels(files, reader), left_out(files)
    for file in files:
        if not is_picture(file):
            row = skipped(file, "not a picture")
        elif file.path in reasons:
            row = skipped(file, reasons[file.path])
        else:
            row = placed(file, reader, classes)
        if row is None:
            unknown["/".join(file.folders) or "(top)"] += 1
        else:
            rows.append(row)
    if unknown:
        raise DataRefused(
            f"{reader.place}: {unknown.total()} pictures lie in folders whose names do not say class and"
            f" modality: {listed(unknown)}. {LAYOUT}. Names are not guessed. Rename or move these folders, say the"
            " modality (--modality), or say what a name means (--labels Normal=Non-COVID, or Other=skip)."
        )
    return rows


def placed(file: File, reader: Reader, class_levels: frozenset[tuple[str, ...]] = frozenset()) -> Row | None:
    """Read class and modality from the folder names; None where they do not say both, or say two things.

    Args:
        file: the file.
        reader: knows the names.
        class_levels: folders (their parts) in which class folders lie: below a class, every folder there must be
            known, so that COVID-19/Normal beside COVID-19/COVID is not taken for COVID.
    """
    names, start = [exact(name) for name in file.folders], 0
    modality = folder_modality(file, reader)
    if modality:
        start = next((i for i, name in enumerate(names) if name in MODALITY_NAMES), 0)
    elif any(name in MODALITY_NAMES for name in names):
        return None  # both modalities in one path
    modality = modality or reader.modality or DICOM_MODALITIES.get(dicom_tags(file).get("Modality", ""))
    classes = [i for i in range(start, len(names)) if names[i] in reader.words]
    labels = {reader.words[names[i]] for i in classes}
    strange = any(
        file.folders[:i] in class_levels or _speaks_of_a_class(names[i], reader)
        for i in range(classes[0] + 1 if classes else len(names), len(names))
        if names[i] not in KNOWN_FOLDERS and i not in classes
    )
    if len(labels) != 1 or not modality or strange:
        return None
    label = labels.pop()
    return Row(
        file.ref,
        file.path,
        label=label,
        modality=modality,
        official_split=folder_split(file),
        stamp=file.stamp,
        skipped="left out by --labels" if label is None else None,
    )


def _class_levels(files: Iterable[File], reader: Reader) -> frozenset[tuple[str, ...]]:
    """Find folders that have a class folder in them, below the modality: 'CT' of 'CT/COVID/1.png'."""
    found = set()
    for folders in {file.folders for file in files}:
        names = [exact(name) for name in folders]
        start = next((i for i, name in enumerate(names) if name in MODALITY_NAMES), 0)
        found |= {folders[:i] for i in range(start, len(names)) if names[i] in reader.words}
    return frozenset(found)


def _speaks_of_a_class(name: str, reader: Reader) -> bool:
    """Say whether a folder's name holds a class name and more than a number: 'not covid', 'covid-', 'covid?'."""
    words = [word for word in reader.words if word in name and (len(word) > 2 or not word.isascii())]
    if not words:
        return False
    return (
        bool(re.search(r"[^\w\s)\]]$", name))
        or COMPANY.sub("", name.replace(max(words, key=len), "", 1)) != ""
    )


def folder_modality(file: File, reader: Reader) -> str | None:
    """Find the one modality that the folders name."""
    names = (exact(name) for name in (*reader.above, *file.folders))
    found = {MODALITY_NAMES[name] for name in names if name in MODALITY_NAMES}
    return found.pop() if len(found) == 1 else None


def folder_split(file: File) -> str | None:
    """Find the split that a folder name speaks of, as in train/CT/COVID."""
    found = {SPLIT_NAMES[name.lower()] for name in file.folders if name.lower() in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def skipped(file: File, reason: str) -> Row:
    """Make the row of a file that is no training picture."""
    return Row(file.ref, file.path, stamp=file.stamp, skipped=reason)


# --- what is no picture to learn from -------------------------------------------------------------


def left_out(files: Sequence[File]) -> dict[str, str]:
    """Say why files are not learnt from, by path, where their names say so: masks and lateral views.

    Known are the folders of segmentation data sets (masks, 'lung masks', Ground-truths; labels, gt and the like
    only beside a folder of images), and files called X_mask, mask_X; X_seg, X_gt only beside X. Masks that are
    called like their picture, in another folder, are found when they are read (see `mask_twins`).
    """
    parents = defaultdict(set)
    for folders in {file.folders for file in files}:
        for depth, name in enumerate(folders):
            parents[folders[:depth]].add(exact(name))
    stems = {(file.folders, _stem(file.name)) for file in files}
    found = {}
    for file in files:
        stem = _stem(file.name)
        twin = MASK_STEM_OF_A_TWIN.fullmatch(stem)
        named = MASK_STEM.fullmatch(stem) or stem.startswith(("mask_", "mask-"))
        if named or _in_mask_folder(file, parents) or (twin and (file.folders, twin["of"]) in stems):
            found[file.path] = MASK
        elif any(LATERAL_NAME.search(name.casefold()) for name in (*file.folders, stem)):
            found[file.path] = LATERAL
    return found


def _stem(name: str) -> str:
    """Return a file's name without its ending, also for 'scan.nii.gz'."""
    return PurePosixPath(re.sub(r"\.gz$", "", name.casefold())).stem


def _in_mask_folder(file: File, parents: dict[tuple[str, ...], set[str]]) -> bool:
    for depth, folder in enumerate(file.folders):
        name = exact(folder)
        if MASK_FOLDERS.fullmatch(name):
            return True
        if name in MASK_FOLDERS_BESIDE_IMAGES and parents[file.folders[:depth]] & IMAGE_FOLDERS:
            return True
    return False


def mask_twins(pictures: Iterable[tuple[str, int | None, str, bool]]) -> set[tuple[str, str]]:
    """Find flat pictures that lie beside the picture they were drawn for.

    Args:
        pictures: source, label, path, and whether it has a few grey levels only (see `reading.is_flat`).

    Returns:
        Source and path of each flat picture that shares its name, less marks such as _mask, with one of its class
        that is not flat.
    """
    real, flat = set(), []
    for source, label, path, is_flat in pictures:
        stem = PurePosixPath(path).stem.casefold()
        if is_flat:
            flat.append((source, label, path, stem))
        else:
            real.add((source, label, stem))
    return {
        (source, path)
        for source, label, path, stem in flat
        if any((source, label, name) in real for name in (stem, re.sub(r"[\s_.-]+[^\W\d_]+$", "", stem)))
    }
