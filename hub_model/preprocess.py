"""The one preprocessing: a grey picture becomes the network's pixels, as ``config.json`` describes it.

It is what timm's evaluation transform and transformers' ``TimmWrapperImageProcessor`` do with the same picture as
RGB, to the last bit (a test compares them), with numpy and Pillow alone.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image


def preprocessing(config: dict) -> Callable[[Image.Image], np.ndarray]:
    """Make the function from a grey 8-bit picture (PIL mode "L") to float32 pixels (3, H, W).

    Args:
        config: ``config.json``, as `layout.read_config` checks it.
    """
    cfg = config["pretrained_cfg"]
    height, width = cfg["input_size"][1:]
    scaled = [
        math.floor(side / cfg["crop_pct"]) for side in (height, width)
    ]  # timm cuts the middle out of this
    top, left = (round((large - side) / 2) for large, side in zip(scaled, (height, width), strict=True))
    resample = Image.Resampling[cfg["interpolation"].upper()]
    mean, std = (np.float32(cfg[key])[:, None, None] for key in ("mean", "std"))

    def pixels(image: Image.Image) -> np.ndarray:
        small = np.asarray(image.convert("L").resize((scaled[1], scaled[0]), resample))
        small = small[top : top + height, left : left + width].astype(np.float32) / np.float32(255)
        return (small[None] - mean) / std  # three equal channels but for their mean and deviation

    return pixels
