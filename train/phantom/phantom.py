"""A stand-in where no real pictures are at hand: synthetic patients in the documented layout.

For tests, for a first training run, and for the demo's examples. Every file says that it is synthetic: by its
name, by a PNG text chunk 'Synthetic' or DICOM attributes, and by the folder's README.txt; the pixels carry no
mark, because a network would read it. Nothing learnt or measured on phantoms says anything about patients.
"""

import csv
import gzip
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import track

from hub_model.check.files import explain_write_errors
from hub_model.dicom import LUNG_WINDOW, lung_window
from hub_model.hub_folder import COVID, LABELS, MODALITIES
from hub_model.layout import loads
from hub_model.refused import Refused
from hub_model.whole import whole_folder

from .imaging import OUTSIDE, axial_slice, draw_pose, draw_scan, field_of_view, film
from .thorax import Thorax

if TYPE_CHECKING:
    from pydicom import Dataset

FORMAT = 1
"""Goes up when the same settings give other pictures."""
FOLDERS = {"xray": "X-ray", "ct": "CT"}
OTHER_FINDINGS = {"healthy": 0.5, "lobar pneumonia": 0.3, "nodule": 0.2}
"""Share of each among Non-COVID patients."""
SETTINGS = "phantom.json"
MARK = "phantom, not a patient"
COLUMNS = ("file_name", "modality", "label", "source", "patient_id", "group", "finding", "view", "synthetic")
SERIES_SLICES, SERIES_SIZE = 24, 192  # of the multi-frame example: frames, pixels
README = f"""SYNTHETIC PICTURES ({MARK}). NOT FOR DIAGNOSIS, AND NOT FOR JUDGING A MODEL'S WORTH.

Written by `python -m train phantom`. A random 3-D model of a chest, seen as CT slices and X-ray films; no
picture of a person went into it. Every file name begins with 'phantom_', and every file says inside that
it is synthetic. metadata.csv lists the files; pictures with one patient_id show one synthetic patient.
"""


@dataclass(frozen=True)
class Settings:
    """What the files depend on, and nothing else."""

    n: int
    seed: int
    patients: int
    modality: str | None
    size: int
    dicom: bool
    format: int = FORMAT


@dataclass(frozen=True)
class View:
    """One picture: `pixels` are HU (CT) or 0 black to 1 white (film), (height, width) float32."""

    pixels: np.ndarray
    view: str  # "axial", "PA" or "AP"
    z: float  # mm, of a slice
    spacing: float  # mm per pixel


def phantom(
    out: Annotated[Path, typer.Option(help="folder to make")],
    n: Annotated[int, typer.Option(help="pictures per modality, half of them COVID")] = 200,
    seed: Annotated[int, typer.Option(help="the same seed gives the same bytes")] = 0,
    patients: Annotated[
        int | None, typer.Option(help="synthetic patients; by default n / 4, at least 6")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="xray or ct; by default both")] = None,
    size: Annotated[int, typer.Option(help="pixels of the shorter side")] = 320,
    dicom: Annotated[
        bool, typer.Option(help="DICOM files instead of PNG, and one CT series as three kinds of volume")
    ] = False,
) -> Path:
    """Write synthetic chest pictures in the documented layout, X-ray|CT / COVID|Non-COVID, and metadata.csv.

    Every patient is seen several times; patient 3 of seed 0 is the same for every N. A folder that already
    holds phantoms of these settings is left as it is.

    Returns:
        `out`.

    Raises:
        Refused: settings that give no data set, or `out` holds something else or cannot be written.
    """
    settings = Settings(n, seed, patients or min(n, max(6, n // 4)), modality, size, dicom)
    _check(settings, patients)
    out = Path(out)
    console = Console(stderr=True, highlight=False, markup=False)
    if _is_done(out, settings):
        console.print(f"{out}: holds these very phantoms already", soft_wrap=True)
        return out
    with explain_write_errors(out):
        count = _write(out, settings, console)
    told = f"{out}: {count:,} pictures of {settings.patients:,} synthetic patients"
    console.print(told, soft_wrap=True)
    return out


def _write(out: Path, settings: Settings, console: Console) -> int:
    """Draw and write everything, whole or not at all; returns the number of pictures."""
    lines = []
    with whole_folder(out) as folder:
        for number in track(range(settings.patients), "drawing synthetic patients", console=console):
            lines += _write_patient(folder, settings, number)
        if settings.dicom and settings.modality != "xray":
            _write_series(folder, settings.seed)
        with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(sorted(lines, key=lambda line: line["file_name"]))
        (folder / "README.txt").write_text(README, "utf-8")
        (folder / SETTINGS).write_text(json.dumps(asdict(settings), indent=2) + "\n", "utf-8")
    return len(lines)


def _check(settings: Settings, asked: int | None) -> None:
    if settings.modality not in (None, *MODALITIES):
        raise Refused(f"Modality {settings.modality!r}: accepted are {' and '.join(map(repr, MODALITIES))}.")
    if settings.n < 2 or settings.seed < 0 or not 64 <= settings.size <= 2048:
        raise Refused(
            f"n={settings.n}, seed={settings.seed}, size={settings.size}: needed are at least 2 pictures "
            "(one of each class), a seed of 0 or more, and 64 to 2048 pixels."
        )
    if asked is not None and not 2 <= asked <= settings.n:
        raise Refused(
            f"{asked} patients for {settings.n} pictures per modality: needed are at least 2 patients (one "
            "of each class), and a picture for each. Six or more can be split into three."
        )


def _is_done(out: Path, settings: Settings) -> bool:
    """Say whether `out` holds these very phantoms.

    Raises:
        Refused: it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / SETTINGS).is_file():
        raise Refused(f"{out}: something else is there already. Name a new folder, or remove this one first.")
    try:
        found = loads((out / SETTINGS).read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(f"{out / SETTINGS} is damaged. Name a new folder, or remove this one first.")
    if found != asdict(settings):
        other = ", ".join(
            f"{key} {value}" for key, value in found.items() if asdict(settings).get(key) != value
        )
        raise Refused(
            f"{out}: holds phantoms of other settings ({other}). Name a new folder, or remove this one first."
        )
    return True


# --- one patient ----------------------------------------------------------------------------------


def draw_patient(seed: int, number: int) -> tuple[Thorax, str]:
    """Draw a synthetic patient and the finding; odd numbers have COVID-19; the anatomy does not depend on it."""
    body, disease = (np.random.default_rng([seed, number, stream]) for stream in (0, 1))
    finding = str(disease.choice(list(OTHER_FINDINGS), p=list(OTHER_FINDINGS.values())))
    finding = "COVID-19" if number % 2 == COVID else finding
    return Thorax.drawn(finding, body, disease), finding


def draw_view(thorax: Thorax, modality: str, rng: np.random.Generator, size: int = 320) -> View:
    """Draw a slice at a random height, or a film in a random pose; nothing here knows the finding."""
    if modality == "ct":
        scan, z = draw_scan(rng), rng.uniform(*thorax.slice_range())
        return View(axial_slice(thorax, z, scan, rng, size), "axial", z, field_of_view(thorax, scan, size)[2])
    pose = draw_pose(rng)
    view = "AP" if pose.anteroposterior else "PA"
    return View(
        film(thorax, pose, rng, size), view, 0.0, min(pose.left + pose.right, pose.top + pose.bottom) / size
    )


def grey(view: View) -> np.ndarray:
    """Show a view as grey levels, uint8: CT in the lung window (level -600, width 1500 HU)."""
    return lung_window(view.pixels) if view.view == "axial" else np.rint(255 * view.pixels).astype(np.uint8)


def _write_patient(folder: Path, settings: Settings, number: int) -> list[dict]:
    """Write a patient's files; returns their lines of the table."""
    thorax, finding = draw_patient(settings.seed, number)
    label = LABELS[number % 2]
    lines = []
    for index, modality in enumerate(MODALITIES):
        if settings.modality not in (None, modality):
            continue
        for place in range(_views(settings, number)):
            view = draw_view(
                thorax,
                modality,
                np.random.default_rng([settings.seed, number, 2, index, place]),
                settings.size,
            )
            stem = f"phantom_{modality}_p{number:04d}_v{place:02d}"
            name = f"{FOLDERS[modality]}/{label}/{stem}.{'dcm' if settings.dicom else 'png'}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            content = (
                _dicom(view, settings.seed, number, place)
                if settings.dicom
                else _png(view, settings.seed, number)
            )
            (folder / name).write_bytes(content)
            patient = f"phantom-s{settings.seed}-p{number:04d}"
            values = (name, modality, label, "phantom", patient, patient, finding, view.view, "yes")
            lines.append(dict(zip(COLUMNS, values, strict=True)))
    return lines


def _views(settings: Settings, number: int) -> int:
    """Draw the pictures of a patient per modality; the pictures of a class are dealt out evenly to its patients."""
    covid = number % 2
    pictures = settings.n // 2 if covid else settings.n - settings.n // 2
    holders = settings.patients // 2 if covid else settings.patients - settings.patients // 2
    return pictures // holders + (number // 2 < pictures % holders)


def _png(view: View, seed: int, number: int) -> bytes:
    info = PngInfo()
    info.add_text("Synthetic", f"{MARK} (seed {seed}, number {number})")
    target = io.BytesIO()
    Image.fromarray(grey(view)).save(target, "PNG", pnginfo=info, compress_level=4)
    return target.getvalue()


# --- DICOM ----------------------------------------------------------------------------------------


def _dicom(view: View, seed: int, number: int, place: int) -> bytes:
    """Store one CT slice in HU with 16 bit, or one film with 12 bit, as a DICOM file."""
    from pydicom import uid

    ct = view.view == "axial"
    file = _dicom_file(
        uid.CTImageStorage if ct else uid.DigitalXRayImageStorageForPresentation, seed, number, place
    )
    if ct:
        _put_pixels(file, view.pixels[None], view.spacing)
        _put_rescale(file)
        file.ImagePositionPatient = [0, 0, round(view.z, 3)]
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.SliceThickness = 1
    else:
        _put_pixels(file, 4095 * view.pixels[None], view.spacing, bits=12)
        file.PresentationIntentType, file.ViewPosition = "FOR PRESENTATION", view.view
        file.WindowCenter, file.WindowWidth = 2048, 4096
    return _saved(file)


def _write_series(folder: Path, seed: int) -> None:
    """Write one patient with COVID-19, from below the domes to the apices, as CT volumes of three kinds.

    An enhanced CT file in ``series/``, one DICOM file a slice in ``series_slices/``, and NIfTI in ``series_nifti/``.
    """
    thorax, _ = draw_patient(seed, COVID)
    scan = draw_scan(np.random.default_rng([seed, COVID, 3]))
    heights = np.linspace(min(thorax.domes) - 40, thorax.apex + 10, SERIES_SLICES)
    frames = np.stack([
        axial_slice(thorax, z, scan, np.random.default_rng([seed, COVID, 3, index]), SERIES_SIZE)
        for index, z in enumerate(heights)
    ])  # fmt: skip
    spacing = round(field_of_view(thorax, scan, SERIES_SIZE)[2], 4)
    for name in ("series", "series_slices", "series_nifti"):
        (folder / name).mkdir()
    many = _multi_frame(frames, heights, spacing, seed)
    (folder / "series" / "phantom_ct_series.dcm").write_bytes(many)
    for index, (pixels, z) in enumerate(zip(frames, heights, strict=True)):
        content = _dicom(View(pixels, "axial", z, spacing), seed, COVID, 1000 + index)
        (folder / "series_slices" / f"phantom_ct_slice_{index:02d}.dcm").write_bytes(content)
    _write_nifti(folder / "series_nifti" / "phantom_ct_series.nii.gz", frames, heights, spacing)


def _multi_frame(frames: np.ndarray, heights: np.ndarray, side: float, seed: int) -> bytes:
    """Make an enhanced CT file of frames (n, height, width) in HU, each at its height and of pixels `side` mm wide."""
    from pydicom import Dataset, uid

    file = _dicom_file(uid.EnhancedCTImageStorage, seed, COVID, place=999)
    _put_pixels(file, frames, None)
    shared, spacing, value, window = Dataset(), Dataset(), Dataset(), Dataset()
    spacing.PixelSpacing = [side] * 2
    spacing.SliceThickness = round(heights[1] - heights[0], 3)
    _put_rescale(value)
    window.WindowCenter, window.WindowWidth = value.WindowCenter, value.WindowWidth
    del value.WindowCenter, value.WindowWidth
    shared.PixelMeasuresSequence, shared.PixelValueTransformationSequence = [spacing], [value]
    shared.FrameVOILUTSequence = [window]
    file.SharedFunctionalGroupsSequence = [shared]
    file.PerFrameFunctionalGroupsSequence = []
    for z in heights:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, round(z, 3)]
        group.PlanePositionSequence = [position]
        file.PerFrameFunctionalGroupsSequence.append(group)
    return _saved(file)


def _write_nifti(path: Path, frames: np.ndarray, heights: np.ndarray, side: float) -> None:
    """Write slices (n, height, width) in HU as NIfTI, whose axes lead to the right, the front and the head."""
    import nibabel

    affine = np.diag([-side, -side, heights[1] - heights[0], 1])
    affine[2, 3] = heights[0]
    stored = np.rint(np.clip(frames, OUTSIDE, 3071)).astype(np.int16)
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored.transpose(2, 1, 0)), affine)
    image.header["descrip"] = MARK.encode()
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    path.write_bytes(gzip.compress(image.to_bytes(), mtime=0))  # the same seed gives the same bytes


def _dicom_file(kind: str, seed: int, number: int, place: int) -> "Dataset":
    """Begin a file without pixels, whose attributes cannot be taken for a person's."""
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset

    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = kind
    file.Modality = "DX" if kind == uid.DigitalXRayImageStorageForPresentation else "CT"
    names = ["covid-xct phantom", str(seed), str(number), file.Modality]
    file.StudyInstanceUID = uid.generate_uid(entropy_srcs=names[:3])
    file.SeriesInstanceUID = uid.generate_uid(entropy_srcs=[*names, str(kind)])
    file.SOPInstanceUID = uid.generate_uid(entropy_srcs=[*names, str(kind), str(place)])
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.PatientName, file.PatientID = "PHANTOM^NOT A PATIENT", f"PHANTOM-S{seed}-P{number:04d}"
    file.PatientBirthDate, file.PatientSex = "19000101", "O"
    file.StudyDate, file.StudyTime, file.StudyID, file.AccessionNumber = (
        "19000101",
        "000000",
        "PHANTOM",
        "PHANTOM",
    )
    file.StudyDescription = file.SeriesDescription = "SYNTHETIC PHANTOM, NOT FOR DIAGNOSIS"
    file.Manufacturer, file.InstitutionName = "covid-xct phantom", "NOT A HOSPITAL"
    file.ImageType = ["DERIVED", "PRIMARY", "AXIAL" if file.Modality == "CT" else "SYNTHETIC", "SYNTHETIC"]
    file.BodyPartExamined, file.BurnedInAnnotation = "CHEST", "NO"
    file.SeriesNumber, file.InstanceNumber = 1, place + 1
    return file


def _put_pixels(file: "Dataset", frames: np.ndarray, spacing: float | None, bits: int = 16) -> None:
    """Store (frames, height, width): HU + 1024 as signed 16 bit, or unsigned numbers of fewer bits."""
    signed = bits == 16
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    _, file.Rows, file.Columns = frames.shape
    if len(frames) > 1:
        file.NumberOfFrames = len(frames)
    if spacing:
        setattr(file, "PixelSpacing" if signed else "ImagerPixelSpacing", [round(spacing, 4)] * 2)
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = (
        16,
        bits,
        bits - 1,
        int(signed),
    )
    stored = np.rint(np.clip(frames, OUTSIDE, 3071) + 1024) if signed else np.rint(frames)
    file.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()


def _put_rescale(item: "Dataset") -> None:
    """Store how stored values become HU, and the lung window."""
    item.RescaleIntercept, item.RescaleSlope, item.RescaleType = -1024, 1, "HU"
    low, high = LUNG_WINDOW
    item.WindowCenter, item.WindowWidth = (low + high) / 2, high - low


def _saved(file: "Dataset") -> bytes:
    target = io.BytesIO()
    file.save_as(target, enforce_file_format=True)
    return target.getvalue()
