"""A second reading of the grey-scale pipeline of DICOM, to hold the first against: numpy and the standard's text.

Nothing of `hub_model` is used, and of pydicom only the parser and the decoders, not its LUT, window or padding
helpers. What the standard leaves open (CT in the lung window, percentiles where no window is given, padding black,
square pixels) is written once more from docs/reading.md.
"""

import numpy as np
from pydicom import Dataset


def rendered(file: Dataset, cells: np.ndarray) -> np.ndarray:
    """One frame of a grey DICOM file as floating grey levels 0..255, its pixels as they lie.

    Args:
        file: the parsed file.
        cells: (H, W), pixel cells as they are stored, of the signedness that the file names.
    """
    stored = stored_values(file, cells)
    padded = padding(file, cells) | padding(file, stored)
    values = modality_transformed(file, stored)
    if is_lung_ct(file, values[~padded]):
        grey = (np.clip(values, -1350, 150) + 1350) / 1500 * 255
    else:
        grey = voi_transformed(file, values)
        if grey is None or np.ptp(grey[~padded]) == 0:
            grey = stretched(values, ~padded)
        if file.PhotometricInterpretation == "MONOCHROME1":
            grey = 255 - grey
    return np.where(padded, 0, grey)


def stored_values(file: Dataset, cells: np.ndarray) -> np.ndarray:
    """PS3.5 8.1.1: bits stored, of which the highest is the high bit; two's complement if signed."""
    bits, high = file.BitsStored, file.get("HighBit", file.BitsStored - 1)
    number = (cells.astype(np.int64) >> (high + 1 - bits)) & (2**bits - 1)
    return np.where((number >> (bits - 1)) & file.PixelRepresentation, number - 2**bits, number)


def padding(file: Dataset, values: np.ndarray) -> np.ndarray:
    """PS3.3 C.7.5.1.1.2: a value, or a range, in the representation of the pixels."""
    if file.get("PixelPaddingValue") is None:
        return np.zeros(values.shape, bool)
    ends = [file.PixelPaddingValue, file.get("PixelPaddingRangeLimit", file.PixelPaddingValue)]
    ends = [end - 2**16 if file.PixelRepresentation and end >= 2**15 else end for end in ends]
    return (values >= min(ends)) & (values <= max(ends))


def modality_transformed(file: Dataset, stored: np.ndarray) -> np.ndarray:
    """PS3.3 C.11.1: look-up table, or slope and intercept."""
    for item in file.get("ModalityLUTSequence") or []:
        return looked_up(item, stored)[0]
    slope, intercept = file.get("RescaleSlope"), file.get("RescaleIntercept")
    return stored * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)


def looked_up(item: Dataset, values: np.ndarray) -> tuple[np.ndarray, int]:
    """PS3.3 C.11.1.1: number of entries, first value mapped, bits; the ends hold for what lies outside."""
    entries, first, bits = item.LUTDescriptor
    first = first - 2**16 if first >= 2**15 and values.min() < 0 else first
    table = np.array(item.LUTData, float)
    return table[np.clip(np.rint(values).astype(int) - first, 0, (entries or 2**16) - 1)], bits


def is_lung_ct(file: Dataset, shown: np.ndarray) -> bool:
    """Docs/reading.md: HU by unit or rescale, or by values that can be nothing else."""
    if file.get("Modality", "") not in ("CT", "", "OT", "SC"):
        return False
    if file.get("RescaleType") == "HU":
        return True
    identity = (file.get("RescaleSlope"), file.get("RescaleIntercept")) in ((1, 0), (None, None))
    return (file.get("Modality") == "CT" and not identity) or (
        file.BitsStored > 8 and (shown < -500).mean() >= 0.01 and (identity or file.RescaleIntercept <= -900)
    )


def voi_transformed(file: Dataset, values: np.ndarray) -> np.ndarray | None:
    """PS3.3 C.11.2: table before window, the first of several; LINEAR, LINEAR_EXACT and SIGMOID word by word."""
    for item in file.get("VOILUTSequence") or []:
        grey, bits = looked_up(item, values)
        return grey / (2**bits - 1) * 255
    center, width = (np.ravel(file.get(name) or [np.nan])[0] for name in ("WindowCenter", "WindowWidth"))
    c, w = float(center), float(width)
    function = file.get("VOILUTFunction") or "LINEAR"
    if not w >= (1 if function == "LINEAR" else 1e-9):
        return None
    if function == "SIGMOID":
        return 255 / (1 + np.exp(np.clip(-4 * (values - c) / w, -700, 700)))
    if function == "LINEAR_EXACT":
        low, high = c - w / 2, c + w / 2
        inside = (values - c) / w + 0.5
    else:
        low, high = c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2
        inside = (values - (c - 0.5)) / max(w - 1, 1e-9) + 0.5
    return np.where(values <= low, 0, np.where(values > high, 255, inside * 255))


def stretched(values: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Docs/reading.md: integers within 0..255 stay, everything else from percentile 0.5 to 99.5."""
    if np.all(values == np.rint(values)) and values[shown].min() >= 0 and values[shown].max() <= 255:
        return values
    low, high = np.percentile(values[shown], [0.5, 99.5])
    if low == high:
        low, high = values[shown].min(), values[shown].max()
    return np.clip((values - low) / ((high - low) or 1), 0, 1) * 255
