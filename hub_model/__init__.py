"""COVID-19 screening of chest X-ray and CT images. For research; not a medical device.

>>> from hub_model import Screener
>>> screener = Screener.from_pretrained("ct")
>>> finding = screener.screen("slice.dcm")

Importing the package needs no torch. The documented CNN family is registered with timm by importing
``hub_model.covid_cnn``, or with the first use of ``Screener.model``; ``timm.create_model("covid_cnn_1")`` and
transformers' Auto classes know it from then on.
"""

from .backends import BackendRefused
from .grey import ImageRefused
from .hub_folder import LABELS, FolderRefused
from .images import read_image
from .refused import Refused
from .screener import AutoScreener, Finding, Frame, Screener
from .series import SeriesFinding
from .site import SiteRefused
from .volumes import Volume, read_volume, read_volumes

__version__ = "0.1.0"
__all__ = [
    "LABELS",
    "AutoScreener",
    "BackendRefused",
    "Finding",
    "FolderRefused",
    "Frame",
    "ImageRefused",
    "Refused",
    "Screener",
    "SeriesFinding",
    "SiteRefused",
    "Volume",
    "read_image",
    "read_volume",
    "read_volumes",
]
