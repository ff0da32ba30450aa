"""The table of recipes: the documented rows to the letter, and rows that name only what exists."""

from dataclasses import FrozenInstanceError, replace

import pytest
import timm

from hub_model.covid_cnn import VARIANTS
from train.fit.augment import AUGMENTATIONS
from train.fit.recipes import RECIPES, Recipe

PENALISED = {"blocks.1.conv.weight", "blocks.2.conv.weight", "hidden.fc1.weight"}


def test_every_variant_has_a_recipe():
    assert RECIPES.keys() == VARIANTS.keys() | {
        "transfer",
        "probe",
        "steady_probe",
        "steady",
        "steady_exchange",
        "steady_ct",
        "family",
        "scratch",
    }


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "learning_rate", "l2"),
    [
        ("covid_cnn_baseline", 64, 50, 0.001, 0.0),
        ("covid_cnn_1", 32, 10, 0.001, 0.0),
        ("covid_cnn_2", 32, 10, 0.001, 0.01),
        ("covid_cnn_3", 32, 20, 0.001, 0.0),
        ("covid_cnn_4", 32, 10, 0.01, 0.01),
        ("covid_cnn_5", 32, 10, 0.001, 0.01),
    ],
)
def test_documented_rows(name, batch, epochs, learning_rate, l2):
    row = RECIPES[name]
    assert (row.batch, row.epochs, row.learning_rate, row.l2) == (batch, epochs, learning_rate, l2)
    assert set(row.l2_kernels) == (PENALISED if l2 else set())
    # nothing of ours is mixed in: plain Adam at Keras' epsilon, a constant rate, the pictures as they are
    plain = Recipe(batch=batch, epochs=epochs, learning_rate=learning_rate)
    own = {"l2": row.l2, "l2_kernels": row.l2_kernels}
    if name == "covid_cnn_baseline":
        own |= {"stop_patience": 5, "stop_min_delta": 0.01}
    assert row == replace(plain, **own)
    assert (row.augment, row.epsilon, row.input_size, row.weight_decay) == ("none", 1e-7, 224, 0)


@pytest.mark.parametrize("name", [name for name, row in RECIPES.items() if row.l2])
def test_penalised_kernels_exist(name):
    parameters = dict(timm.create_model(name, num_classes=2).named_parameters())
    assert all(parameters[kernel].ndim > 1 for kernel in RECIPES[name].l2_kernels)


@pytest.mark.parametrize("name", list(RECIPES))
def test_rows_name_only_what_there_is(name):
    row = RECIPES[name]
    assert row.augment in AUGMENTATIONS
    assert row.schedule in ("constant", "cosine")
    assert row.balance in (None, "class", "source")
    assert row.copies or not (row.style or row.background)  # copies alone take them
    assert 0 <= row.style <= 1 and 0 <= row.background <= 1
    assert 0 <= row.average < 1 and 0 <= row.warm_up < 1 and 0 <= row.label_smoothing < 1


def test_rows_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        RECIPES["transfer"].epochs = 1
