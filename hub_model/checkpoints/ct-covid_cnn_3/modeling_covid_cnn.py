"""Opens a covid_cnn hub folder in transformers without our package: `trust_remote_code=True` runs this file.

It is transformers' own timm wrapper; all it adds is that covid_cnn.py beside it has registered the family with timm.
"""

import transformers

from .covid_cnn import VARIANTS


class TimmWrapperForImageClassification(transformers.TimmWrapperForImageClassification):
    """The wrapper of the same name, by which pipelines know it, for the six architectures of covid_cnn.py.

    Raises:
        ValueError: When config.json names an architecture outside the family.
    """

    def __init__(self, config: transformers.TimmWrapperConfig) -> None:
        if config.architecture not in VARIANTS:
            raise ValueError(
                f"config.json names the architecture {config.architecture!r}; this code opens {', '.join(VARIANTS)}. "
                "Open any other folder without trust_remote_code."
            )
        super().__init__(config)
