"""COVID-19 screening of chest X-ray and CT images. For research; not a medical device.

>>> from hub_model import Screener
>>> screener = Screener.from_pretrained("ct")
>>> finding = screener.screen("slice.dcm")

Importing the package registers the documented CNN family with timm, so that ``timm.create_model("covid_cnn_1")``
and transformers' Auto classes know it.
"""

from . import covid_cnn as covid_cnn
from .grey import ImageRefused
from .hub_folder import LABELS, FolderRefused
from .images import read_image
from .refused import Refused
from .screener import AutoScreener, Finding, Screener

__version__ = "0.1.0"
__all__ = [
    "LABELS",
    "AutoScreener",
    "Finding",
    "FolderRefused",
    "ImageRefused",
    "Refused",
    "Screener",
    "read_image",
]
