"""Training recipes, one row each: the six documented ones, and this project's own for stock networks.

A documented network and its recipe have the same name, so a variant that differs in its recipe alone is seen
at once. Those rows follow the description of the original system: cross-entropy and Adam.
"""

from dataclasses import dataclass

KERAS_EPSILON = 1e-7  # Adam's epsilon in Keras; PyTorch's own is 1e-8
PENALISED = ("blocks.1.conv.weight", "blocks.2.conv.weight", "hidden.fc1.weight")


@dataclass(frozen=True)
class Recipe:
    """Say how a network is trained: batches, learning rates, penalties, and how the head starts.

    Attributes:
        batch: Images a step, over all processes.
        epochs: Passes over the training images, at most.
        learning_rate: Of the head, at its highest.
        backbone_lr: Factor on it for all but the head.
        layer_decay: Further factor for each stage away from the head (Clark et al. 2020, arXiv:2003.10555).
        freeze_stages: Stages, the stem being the first, that stay as they came.
        probe: C of a logistic regression on frozen features that the head starts from; 0 starts at random,
            which distorts the features that came with the weights (Kumar et al. 2022, arXiv:2202.10054).
        copies: Strongly changed copies of each training picture: what a steady head learns from, or else the network
            itself, which is shown the picture or one of them each time.
        steady: Penalty of a steady head (`train.fit.steady`) on what such copies move; 0 means no such head.
        source_penalty: Penalty of a steady head on what tells the sources of one label apart.
        ridge: Penalty of a steady head on every weight.
        consistent: Whether the network then learns to give every copy the log-odds that the steady head gives the mean
            of them; the loss is then a distance of log-odds.
        epsilon: What Adam adds to its divisor.
        schedule: "constant" or "cosine" (to zero).
        warm_up: Share of the steps in which the learning rate rises from zero.
        weight_decay: Decoupled (AdamW), on kernels only; 0 means plain Adam.
        l2: Penalty added to the loss, as Keras does: this times the sum of squares of each kernel in `l2_kernels`.
        l2_kernels: Names of the penalised parameters.
        label_smoothing: Share of each target that is spread over both classes.
        average: Decay per step of the moving average of the weights, which is evaluated and kept; 0 is off.
        freeze_norms: Epochs in which batch norm keeps the statistics it came with.
        balance: None, "class" (both classes alike) or "source" (and within a class, each source by the root
            of its size).
        augment: Name in `train.fit.augment.AUGMENTATIONS`.
        input_size: Side of the square picture in pixels; None leaves the architecture's own.
        stop_patience: Epochs without a gain in training accuracy after which training stops; 0 is never.
        stop_min_delta: Smallest rise of the training accuracy that counts as a gain.
    """

    batch: int
    epochs: int
    learning_rate: float
    backbone_lr: float = 1.0
    layer_decay: float = 1.0
    freeze_stages: int = 0
    probe: float = 0.0
    copies: int = 0
    style: float = 0.0
    background: float = 0.0
    steady: float = 0.0
    source_penalty: float = 0.0
    ridge: float = 0.1
    consistent: bool = False
    epsilon: float = KERAS_EPSILON
    schedule: str = "constant"
    warm_up: float = 0.0
    weight_decay: float = 0.0
    l2: float = 0.0
    l2_kernels: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    average: float = 0.0
    freeze_norms: float = 0.0
    balance: str | None = None
    augment: str = "none"
    input_size: int | None = 224
    stop_patience: int = 0
    stop_min_delta: float = 0.0


RECIPES = {
    # 'Early stopping on training accuracy, min_delta 0.01, patience 5'; 'at most 50 epochs'
    "covid_cnn_baseline": Recipe(batch=64, epochs=50, learning_rate=0.001,
                                 stop_patience=5, stop_min_delta=0.01),
    "covid_cnn_1": Recipe(batch=32, epochs=10, learning_rate=0.001),
    # 'A penalty on the second and third convolutional layers' and the dense layer of 64
    "covid_cnn_2": Recipe(batch=32, epochs=10, learning_rate=0.001, l2=0.01, l2_kernels=PENALISED),
    "covid_cnn_3": Recipe(batch=32, epochs=20, learning_rate=0.001),
    "covid_cnn_4": Recipe(batch=32, epochs=10, learning_rate=0.01, l2=0.01, l2_kernels=PENALISED),
    "covid_cnn_5": Recipe(batch=32, epochs=10, learning_rate=0.001, l2=0.01, l2_kernels=PENALISED),
    # from ImageNet weights: first the head alone, then all but the first stages, slowly and with batch norm
    # as it came. Other settings, tried on one validation split of 118 slices, fell behind; why was not established
    "transfer": Recipe(batch=12, epochs=10, learning_rate=3e-4, backbone_lr=0.3, layer_decay=0.85,
                       freeze_stages=2, probe=0.01, epsilon=1e-8, schedule="cosine", warm_up=0.1,
                       weight_decay=0.02, label_smoothing=0.1, average=0.98, freeze_norms=10,
                       balance="source", augment="medium"),
    # the head alone, on features that stay ImageNet's: where label and collection coincide, everything else that is
    # trained learns the collection
    "probe": Recipe(batch=32, epochs=1, learning_rate=1e-5, freeze_stages=99, probe=0.01, epsilon=1e-8,
                    freeze_norms=99, balance="source", augment="medium"),
    # the head alone, by least squares: harmless changes and the collection that a picture is from hardly move it
    "steady_probe": Recipe(batch=24, epochs=1, learning_rate=1e-6, freeze_stages=99, epsilon=1e-8, freeze_norms=99,
                           balance="source", copies=6, steady=3.0, source_penalty=10.0, input_size=160),
    # that head averaged over changed copies is the teacher of the network itself: it learns to answer every copy alike
    # and is not free to learn which collection a picture came from; penalties by `tune`, on films
    "steady": Recipe(batch=24, epochs=8, learning_rate=4e-4, freeze_stages=2, epsilon=1e-8, schedule="cosine",
                     warm_up=0.1, weight_decay=0.01, freeze_norms=99, balance="source", copies=6, steady=1.68,
                     source_penalty=0.58, ridge=0.355, consistent=True, input_size=160),
    # the same, with copies that have the style and the background of other sources
    "steady_exchange": Recipe(batch=24, epochs=8, learning_rate=4e-4, freeze_stages=2, epsilon=1e-8,
                              schedule="cosine", warm_up=0.1, weight_decay=0.01, freeze_norms=99, balance="source",
                              copies=6, style=0.5, background=0.5, steady=1.68, source_penalty=0.58, ridge=0.355,
                              consistent=True, input_size=160),
    # `steady` for CT: larger pictures; made for an --expert and --unlabelled slices
    "steady_ct": Recipe(batch=24, epochs=32, learning_rate=4e-4, freeze_stages=2, epsilon=1e-8, schedule="cosine",
                        warm_up=0.1, weight_decay=0.01, freeze_norms=99, balance="source", copies=6, steady=3.0,
                        source_penalty=10.0, ridge=0.5, consistent=True, input_size=192),
    # one for the whole documented family, made for a --teacher: every look of a picture is to be answered as the
    # teacher answers the picture as it came
    "family": Recipe(batch=32, epochs=24, learning_rate=1e-3, epsilon=1e-8, schedule="cosine",
                     warm_up=0.1, weight_decay=0.05, average=0.99, balance="source", copies=6,
                     augment="light"),
    # from random weights: one learning rate, more epochs, gentler pictures
    "scratch": Recipe(batch=32, epochs=60, learning_rate=1e-3, epsilon=1e-8, schedule="cosine", warm_up=0.1,
                      weight_decay=0.05, label_smoothing=0.1, average=0.99, balance="source",
                      augment="light"),
}  # fmt: skip
"""By name; `fit` takes the variant's own row, else "transfer" if it starts from weights, else "scratch"."""
