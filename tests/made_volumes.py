"""The same CT volume as files of every kind, lying in the patient in any of the 48 ways; for tests."""

import gzip
import zlib
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset

SHAPE = (6, 40, 48)  # slices from the feet up, rows from front to back, columns to the patient's left
SPACING = np.array([0.8, 0.8, 10.0])  # mm to the left, to the back, to the head
ORIGIN = np.array([-19.0, -16.0, -200.0])  # mm, of the first number
WAYS = [(order, flips) for order in permutations(range(3)) for flips in product((1, -1), repeat=3)]
"""Orders and directions in which a file may hold its axes."""
FLIPS = [(order, flips) for order, flips in WAYS if order == (0, 1, 2)]


def hounsfield() -> np.ndarray:
    """HU, `SHAPE`: air and tissue, no two slices, rows or columns alike."""
    noise = np.random.default_rng(0).normal(-750, 200, SHAPE)
    return (noise + np.linspace(0, 950, SHAPE[2])).round().astype(np.int16)


def lying(hu: np.ndarray, way: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A volume whose axes a file holds in another way: numbers (I, J, K), steps (3, 3) and origin (3,) in LPS mm."""
    order, flips = way
    numbers, steps, origin = hu.transpose(2, 1, 0), np.diag(SPACING), ORIGIN.copy()
    for axis in range(3):
        if flips[axis] < 0:
            numbers = np.flip(numbers, axis)
            origin = origin + steps[:, axis] * (numbers.shape[axis] - 1)
            steps = steps @ np.diag([-1 if axis == other else 1 for other in range(3)])
    return np.ascontiguousarray(numbers.transpose(order)), steps[:, order], origin


def nifti(path: Path, numbers: np.ndarray, steps: np.ndarray, origin: np.ndarray, code: int = 1) -> Path:
    import nibabel

    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, origin
    affine[:2] *= -1  # NIfTI is RAS
    image = nibabel.Nifti1Image(numbers, affine)
    image.set_sform(affine, code)
    image.set_qform(affine if code else None, code)
    nibabel.save(image, path)
    return path


def nrrd(path: Path, numbers: np.ndarray, steps: np.ndarray, origin: np.ndarray, **header) -> Path:
    import nrrd as pynrrd

    told = {"space": "left-posterior-superior", "space directions": steps.T, "space origin": origin, **header}
    pynrrd.write(str(path), numbers, told)
    return path


def meta(
    path: Path, numbers: np.ndarray, steps: np.ndarray, origin: np.ndarray, packed: bool = False
) -> Path:
    """A .mha, or a .mhd with its numbers in a .raw beside it."""
    lengths = np.linalg.norm(steps, axis=0)
    words = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": packed,
        "TransformMatrix": " ".join(map(str, (steps / lengths).T.ravel())),
        "Offset": " ".join(map(str, origin)),
        "ElementSpacing": " ".join(map(str, lengths)),
        "DimSize": " ".join(map(str, numbers.shape)),
        "ElementType": {"int16": "MET_SHORT", "float32": "MET_FLOAT", "uint8": "MET_UCHAR"}[
            numbers.dtype.name
        ],
        "ElementDataFile": "LOCAL" if path.suffix == ".mha" else path.with_suffix(".raw").name,
    }
    content = numbers.tobytes(order="F")
    content = zlib.compress(content) if packed else content
    text = "".join(f"{key} = {value}\n" for key, value in words.items()).encode()
    path.write_bytes(text + (content if path.suffix == ".mha" else b""))
    if path.suffix != ".mha":
        path.with_suffix(".raw").write_bytes(content)
    return path


def ct_file(hu: np.ndarray, **tags) -> Dataset:
    """A CT file with the given HU, (rows, columns) or (frames, rows, columns)."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    file.SOPClassUID = uid.CTImageStorage if hu.ndim == 2 else uid.EnhancedCTImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.Modality, file.SeriesInstanceUID = "CT", "1.2.3"
    file.Rows, file.Columns = hu.shape[-2:]
    if hu.ndim == 3:
        file.NumberOfFrames = len(hu)
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    file.RescaleSlope, file.RescaleIntercept, file.RescaleType = 1, -1024, "HU"
    file.PixelData = (hu + 1024).astype("<i2").tobytes()
    for keyword, value in tags.items():
        setattr(file, keyword, value)
    return file


def saved(file: Dataset, path: Path) -> Path:
    pydicom.dcmwrite(path, file, enforce_file_format=True)
    return path


def dicom_slices(folder: Path, hu: np.ndarray, way: tuple = FLIPS[0], **tags) -> Path:
    """A series, one file a slice; `way` flips rows, columns and the order of the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, steps, origin = lying(hu, way)
    lengths = np.linalg.norm(steps, axis=0)
    for place in range(numbers.shape[2]):
        file = ct_file(
            numbers[:, :, place].T,
            ImagePositionPatient=[float(x) for x in origin + place * steps[:, 2]],
            ImageOrientationPatient=[float(x) for x in (steps / lengths)[:, :2].T.ravel()],
            PixelSpacing=[float(lengths[1]), float(lengths[0])],
            InstanceNumber=place + 1,
            **tags,
        )
        saved(file, folder / f"{place:03d}.dcm")
    return folder


def multi_frame(path: Path, hu: np.ndarray, way: tuple = FLIPS[0]) -> Path:
    """An enhanced CT file, with the place of each frame in its own group."""
    numbers, steps, origin = lying(hu, way)
    lengths = np.linalg.norm(steps, axis=0)
    file = ct_file(np.ascontiguousarray(numbers.transpose(2, 1, 0)))
    shared, plane, measures, value = Dataset(), Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [float(x) for x in (steps / lengths)[:, :2].T.ravel()]
    measures.PixelSpacing = [float(lengths[1]), float(lengths[0])]
    value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, -1024, "HU"
    del file.RescaleSlope, file.RescaleIntercept, file.RescaleType
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    shared.PixelValueTransformationSequence = [value]
    file.SharedFunctionalGroupsSequence, each = [shared], []
    for place in range(numbers.shape[2]):
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [float(x) for x in origin + place * steps[:, 2]]
        group.PlanePositionSequence = [position]
        each.append(group)
    file.PerFrameFunctionalGroupsSequence = each
    return saved(file, path)


def gzipped(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed
