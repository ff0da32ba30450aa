"""How closely `read_image` agrees with a second reading of the standard (tests/rendering.py), and on how much.

    python -m tests.benchmarks.reading

Reads every grey DICOM file in pydicom's wheel and a file of every made kind. Writes docs/measured/reading.*.
"""

import tempfile
import warnings
from pathlib import Path

import pydicom

from hub_model.images import read_image
from tests.bad_files import write_dicom
from tests.benchmarks.measured import environment, write
from tests.hub_model import test_codecs, test_deep
from tests.hub_model.test_rendering import FRAMES, MADE, difference, second_reading, wheel


def made() -> int:
    """Count the made kinds that agree to one grey level."""
    with tempfile.TemporaryDirectory() as folder:
        found = 0
        for pixels, tags in MADE.values():
            path = write_dicom(Path(folder) / "a.dcm", pixels, **tags)
            found += difference(read_image(path), second_reading(pydicom.dcmread(path), 0)) <= 1
    return found


def told(result: dict) -> str:
    """The table of what was compared."""
    wheel, of_made = result["wheel"], result["made"]
    rows = [
        ("what", "result", "command"),
        ("---", "---", "---"),
        (
            f"grey pictures in pydicom's wheel, first {FRAMES} frames of each file",
            f"{wheel['agree']} of {wheel['read']} agree with the second reading to one grey level; "
            f"{len(wheel['undecodable'])} files are cut short or broken on purpose",
            "`python -m tests.benchmarks.reading`",
        ),
        (
            "made kinds: stored values, windows, photometric interpretations, modalities",
            f"{of_made['agree']} of {of_made['read']} to one grey level",
            "the same",
        ),
        (
            f"TIFF: {result['tiff_numbers']} number types in {result['tiff_ways']} layouts; grey in RGB, planar and "
            "not; white is zero; alpha; 10, 12 and 14 packed bits",
            "equal to the last grey level",
            "`pytest tests/hub_model/test_deep.py`",
        ),
        (
            f"12 bits through {result['transfer_syntaxes']} transfer syntaxes, one frame and several, unsigned and "
            "signed",
            "equal to the uncompressed file",
            "`pytest tests/hub_model/test_codecs.py`",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files are broken on purpose
        result = {
            "wheel": wheel(),
            "made": {"read": len(MADE), "agree": made()},
            "tiff_numbers": len(test_deep.NUMBERS),
            "tiff_ways": len(test_deep.WAYS),
            "transfer_syntaxes": len(test_codecs.WAYS),
            "environment": environment("pydicom", "pillow", "imagecodecs"),
        }
    write("reading", result, told(result))


if __name__ == "__main__":
    main()
