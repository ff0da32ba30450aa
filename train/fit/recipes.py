"""Training recipes, one a row: the six documented ones and ours for stock networks.

A documented network and its recipe have the same name, so a variant that differs in its recipe alone is seen
at once. Those rows follow the description of the original system: cross-entropy and Adam.
"""

from dataclasses import dataclass

KERAS_EPSILON = 1e-7  # Adam's epsilon in Keras; PyTorch's own is 1e-8
PENALISED = ("blocks.1.conv.weight", "blocks.2.conv.weight", "hidden.fc1.weight")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        batch: Images a step, over all processes.
        epochs: Passes over the training images, at most.
        learning_rate: Of the head, at its highest.
        backbone_lr: Factor on it for all but the head.
        layer_decay: Further factor for each stage away from the head (Clark et al. 2020, arXiv:2003.10555).
        freeze_stages: Stages, the stem being the first, that stay as they came.
        probe: C of a logistic regression on frozen features that the head starts from; 0 starts at random,
            which distorts the features that came with the weights (Kumar et al. 2022, arXiv:2202.10054).
        blind: Rounds in which that regression is made blind to the directions that tell sources apart within
            a class (iterative null-space projection, Ravfogel et al. 2020, arXiv:2004.07667).
        copies: Strongly changed copies of each training picture that a steady head learns from.
        steady: Penalty on what such copies move, of a head that is fitted by least squares; 0 is no such head
            (see `train.fit.steady`).
        source_penalty: Its penalty on what tells the sources of one label apart.
        ridge: Its penalty on every weight.
        consistent: Whether the network then learns to give any copy the log-odds that this head gives the mean of them;
            the loss is then a distance of log-odds.
        epsilon: Adam's.
        beta2: Adam's decay of squared gradients.
        schedule: "constant" or "cosine" (to zero).
        warm_up: Share of the steps in which the learning rate rises from zero.
        weight_decay: Decoupled (AdamW), on kernels only; 0 means plain Adam.
        l2: Keras' penalty, added to the loss: this times the sum of squares of each kernel in `l2_kernels`.
        l2_kernels: Parameter names.
        label_smoothing: Share of each target that is spread over both classes.
        mixup: Alpha of the Beta distribution (Zhang et al. 2018, arXiv:1710.09412); 0 is off.
        average: Decay a step of the moving average of the weights, which is evaluated and kept; 0 is off.
        freeze_norms: Epochs in which batch norm keeps the statistics it came with.
        balance: None, "class" (both classes alike) or "source" (and within a class, each source by the root
            of its size).
        augment: Name in `train.fit.augment.AUGMENTATIONS`.
        input_size: Side of the square picture in pixels; None leaves the architecture's own.
        keep: "last" or "best": the epoch with the highest validation AUROC.
        stop_patience: Epochs without a gain in training accuracy after which training stops; 0 is never.
        stop_min_delta: What counts as a gain.
    """

    batch: int
    epochs: int
    learning_rate: float
    backbone_lr: float = 1.0
    layer_decay: float = 1.0
    freeze_stages: int = 0
    probe: float = 0.0
    blind: int = 0
    copies: int = 0
    steady: float = 0.0
    source_penalty: float = 0.0
    ridge: float = 0.1
    consistent: bool = False
    epsilon: float = KERAS_EPSILON
    beta2: float = 0.999
    schedule: str = "constant"
    warm_up: float = 0.0
    weight_decay: float = 0.0
    l2: float = 0.0
    l2_kernels: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    mixup: float = 0.0
    average: float = 0.0
    freeze_norms: float = 0.0
    balance: str | None = None
    augment: str = "none"
    input_size: int | None = 224
    keep: str = "last"
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
    # as it came. Other settings, tried on one validation part of 118 slices, fell behind; why was not established
    "transfer": Recipe(batch=12, epochs=10, learning_rate=3e-4, backbone_lr=0.3, layer_decay=0.85,
                       freeze_stages=2, probe=0.01, epsilon=1e-8, schedule="cosine", warm_up=0.1,
                       weight_decay=0.02, label_smoothing=0.1, average=0.98, freeze_norms=10,
                       balance="source", augment="medium"),
    # the head alone, on features that stay ImageNet's: where label and collection coincide, everything else that is
    # trained learns the collection
    "probe": Recipe(batch=32, epochs=1, learning_rate=1e-5, freeze_stages=99, probe=0.01, epsilon=1e-8,
                    freeze_norms=99, balance="source", augment="medium"),
    # the same, and blind to the directions in which collections differ within a class: worse at home, better on
    # most collections that had no part in training
    "blind_probe": Recipe(batch=32, epochs=1, learning_rate=1e-5, freeze_stages=99, probe=0.01, blind=3,
                          epsilon=1e-8, freeze_norms=99, balance="source", augment="medium"),
    # the head alone by least squares, deaf to harmless changes and to what tells collections apart
    "steady_probe": Recipe(batch=24, epochs=1, learning_rate=1e-6, freeze_stages=99, epsilon=1e-8, freeze_norms=99,
                           balance="source", copies=6, steady=3.0, source_penalty=10.0, input_size=160),
    # that head averaged over changed copies is the teacher of the network itself: it learns to answer every copy alike
    # and is not free to learn which collection a picture came from
    "steady": Recipe(batch=24, epochs=8, learning_rate=4e-4, freeze_stages=2, epsilon=1e-8, schedule="cosine",
                     warm_up=0.1, weight_decay=0.01, freeze_norms=99, balance="source", copies=6, steady=3.0,
                     source_penalty=10.0, consistent=True, input_size=160),
    # the same for CT: larger pictures, more rounds of fewer; made for an --expert
    "steady_ct": Recipe(batch=24, epochs=12, learning_rate=4e-4, freeze_stages=2, epsilon=1e-8, schedule="cosine",
                        warm_up=0.1, weight_decay=0.01, freeze_norms=99, balance="source", copies=6, steady=3.0,
                        source_penalty=10.0, ridge=0.5, consistent=True, input_size=224),
    # from random weights: one learning rate, more epochs, gentler pictures
    "scratch": Recipe(batch=32, epochs=60, learning_rate=1e-3, epsilon=1e-8, schedule="cosine", warm_up=0.1,
                      weight_decay=0.05, label_smoothing=0.1, average=0.99, balance="source",
                      augment="light"),
}  # fmt: skip
"""By name; `fit` takes the variant's own row, else "transfer" if it starts from weights, else "scratch"."""
