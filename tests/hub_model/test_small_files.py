"""Two small DICOM files of the repository, with exact numbers: what of the reading can be asked without real pictures.

`phantom_ct.dcm` holds Hounsfield units and a soft-tissue window, which must give way to the lung window;
`phantom_xray.dcm` is MONOCHROME1 of 12 bits. Both are synthetic, 96 pixels a side.
"""

from pathlib import Path

import numpy as np
import pytest

from hub_model import AutoScreener, ImageRefused, Screener, hub_folder, read_image

FILES = Path(__file__).resolve().parents[1] / "files"
GREY = {
    "ct": (1_103_207, [[0, 0, 61, 0], [0, 88, 217, 106], [211, 89, 205, 93], [0, 98, 255, 242]]),
    "xray": (1_346_427, [[5, 173, 201, 131], [104, 73, 237, 140], [4, 133, 245, 148], [14, 126, 210, 131]]),
}
"""Sum of all grey levels, and every 24th pixel: worked out from the stored values by PS3.3 C.11."""
PROBABILITY = {"ct": 0.3898, "xray": 0.9105, "ct-covid_cnn_3": 0.3822, "xray-covid_cnn_3": 0.7247}
"""Of the embedded networks: new weights give new numbers."""


@pytest.mark.parametrize("modality", GREY)
def test_every_grey_level_is_the_one_of_the_standard(modality):
    grey = np.asarray(read_image(FILES / f"phantom_{modality}.dcm", modality=modality))
    total, some = GREY[modality]
    assert (grey.shape, grey.dtype) == ((96, 96), np.uint8)
    assert int(grey.sum()) == total
    assert grey[::24, ::24].tolist() == some


@pytest.mark.parametrize("name", hub_folder.embedded())
def test_the_embedded_network_gives_its_answer(name):
    screener = Screener.from_pretrained(name)
    finding = screener.screen(FILES / f"phantom_{screener.modality}.dcm")
    assert finding.decision == "positive"
    assert finding.probability == pytest.approx(PROBABILITY[name], abs=5e-4)


def test_each_goes_to_its_own_model():
    screener = AutoScreener.from_pretrained()
    assert screener.screen(FILES / "phantom_ct.dcm").modality == "ct"
    assert screener.screen(FILES / "phantom_xray.dcm").modality == "xray"


@pytest.mark.parametrize(("modality", "other"), [("ct", "xray"), ("xray", "ct")])
def test_the_other_model_refuses_it_by_its_header(modality, other):
    with pytest.raises(ImageRefused) as refused:
        read_image(FILES / f"phantom_{modality}.dcm", modality=other)
    assert refused.value.reason.code == "other_modality"
