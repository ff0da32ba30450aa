"""Volumes as training pictures: slices of one volume stay together, those without lung are told."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from hub_model.check.files import read_bytes
from hub_model.check.headers import LUNGLESS
from hub_model.check.labels import Row
from hub_model.check.layout import MASK
from hub_model.check.sources import open_sources
from hub_model.images import read_image
from tests.made_volumes import FLIPS, ORIGIN, SPACING, dicom_slices, hounsfield, lying, multi_frame, nifti
from train.data.prepare import _ordered
from train.data.reading import _record
from train.data.slices import unfolded

EXAMPLE = Path(__file__).parents[2] / "demo" / "examples" / "phantom_ct_1.png"
HU = hounsfield()


def collection(folder: Path) -> Path:
    for label in ("COVID", "Non-COVID"):
        (folder / "CT" / label).mkdir(parents=True)
    nifti(folder / "CT/COVID/scan.nii.gz", *lying(HU, FLIPS[3]))
    nifti(folder / "CT/COVID/scan_mask.nii.gz", *lying((HU > -500).astype(np.uint8), FLIPS[3]))
    nifti(folder / "CT/COVID/unplaced.nii", *lying(HU, FLIPS[3]), code=0)
    multi_frame(folder / "CT/Non-COVID/many.dcm", HU)
    dicom_slices(folder / "CT/Non-COVID/series", HU[:2])
    return folder


def test_every_nth_slice_of_a_volume_is_a_row_of_one_family(tmp_path):
    rows = unfolded(open_sources(str(collection(tmp_path / "set"))), every=2)
    by = {row.path: row for row in rows}
    scan = [row for row in rows if row.path.startswith("CT/COVID/scan.nii.gz#")]
    assert [row.path[-4:] for row in scan] == ["0002", "0004", "0006"]
    assert len({row.known for row in scan}) == 1 and all(row.label == 1 for row in scan)
    assert len({row.stamp for row in scan}) == 3
    many = [row for row in rows if row.path.startswith("CT/Non-COVID/many.dcm#")]
    assert len(many) == 3 and not set(many[0].known) & set(scan[0].known)
    assert by["CT/COVID/scan_mask.nii.gz"].skipped == MASK
    assert by["CT/COVID/unplaced.nii"].skipped == "a volume that cannot be used: no_orientation"
    assert sum(row.path.startswith("CT/Non-COVID/series/") and not row.skipped for row in rows) == 2
    shown = [np.asarray(read_image(read_bytes(row.ref))) for row in (scan[0], many[0])]
    assert np.array_equal(*shown)  # the same volume, whichever file
    names = [row.path.partition("#")[0] for row in _ordered(rows)]
    assert sum(a != b for a, b in pairwise(names)) == len(set(names)) - 1


def test_slices_without_lung_are_left_out_with_a_word(tmp_path):
    picture = np.asarray(Image.open(EXAMPLE).convert("L"))
    stack = np.stack([picture, np.full_like(picture, 90)])
    stack[1, ::2] = 110
    path = nifti(tmp_path / "a.nii", np.ascontiguousarray(stack.transpose(2, 1, 0)), np.diag(SPACING), ORIGIN)
    rows = unfolded([Row(path, "a.nii", "s", 1, "ct", stamp="1")], every=1)
    records = [_record(row, {"long_side": None, "describe": False}) for row in rows]
    assert [record.get("refused") for record in records] == [LUNGLESS, None]  # from the head down
    assert np.array_equal(np.asarray(read_image(records[1]["image"])), picture)


def test_other_rows_stay_as_they_are(tmp_path):
    picture = Row(EXAMPLE, "a.png", "s", 1, "ct")
    film = Row(tmp_path / "x.nii", "x.nii", "s", 1, "xray")
    gone = Row(tmp_path / "gone.nii", "gone.nii", "s", 1, "ct")
    assert unfolded([picture, film, gone]) == [picture, film, gone]
