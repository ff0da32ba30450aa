"""Write a calibration into the network, so that every loader gives calibrated probabilities."""

import math

import torch


def fold(model: torch.nn.Module, temperature: float, bias: float) -> None:
    """Write a calibration into the last linear layer, in place.

    Every loader then gives the calibrated probability without knowing of calibration. The layer gives two logits, or,
    in the documented networks, the second of them alone; the bias goes to that of COVID, which is the last.

    Raises:
        ValueError: the temperature is not a positive number, or the bias is not finite or has nowhere to go.
    """
    if not (temperature > 0 and math.isfinite(temperature) and math.isfinite(bias)):
        raise ValueError(
            f"A temperature is a positive number and a bias a finite one; got {temperature}, {bias}."
        )
    head = model.get_classifier()
    if head.bias is None and bias:
        raise ValueError("The last layer of this network has no bias; fold a temperature alone.")
    with torch.no_grad():
        head.weight.div_(temperature)
        if head.bias is not None:
            head.bias.div_(temperature)
            head.bias[-1] += bias
