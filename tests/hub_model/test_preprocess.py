"""The one preprocessing in numpy is timm's and transformers' own, to the last bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from hub_model.preprocess import preprocessing

CFG = {"input_size": [3, 96, 80], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic",
       "crop_pct": 1.0, "crop_mode": "squash"}  # fmt: skip


@pytest.mark.parametrize("size", [(40, 200), (96, 80), (80, 96), (500, 333), (33, 33)])
@pytest.mark.parametrize(
    "changes", [{}, {"interpolation": "bilinear"}, {"crop_pct": 0.875}, {"crop_pct": 0.9}]
)
def test_as_timm_does_it(size, changes):
    cfg = CFG | changes
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    picture = Image.fromarray(noise)
    stock = create_transform(**resolve_data_config(cfg, model=None), is_training=False)
    ours = preprocessing({"pretrained_cfg": cfg})(picture)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, stock(picture.convert("RGB")).numpy())


def test_the_default_type_of_torch_changes_nothing():
    picture = Image.new("L", (100, 100), 77)
    before = preprocessing({"pretrained_cfg": CFG})(picture)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(preprocessing({"pretrained_cfg": CFG})(picture), before)
    finally:
        torch.set_default_dtype(torch.float32)
