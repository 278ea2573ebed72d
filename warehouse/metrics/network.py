"""A network that predicts many assays at once, where most of their labels are missing.

scikit-learn's perceptron wants all labels of a row, and torch is not for this package: three hidden layers, their
gradient and the steps of the optimiser are written out here.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from warehouse.names import unknown

Array = NDArray[np.floating]

OPTIMIZERS = ("adam", "sgd")
LAYERS = 3  # hidden ones
INPUT_DROPOUT = 0.1
CLIP = 5.0  # of the gradient's length, for sgd
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_MOMENTUM = 0.9


@dataclass
class MaskedNetwork:
    """Three hidden layers of rectified units, and one logit an assay; the loss is over the labels that are there.

    Attributes:
        hidden: units of each hidden layer.
        dropout: of hidden units; of the features it is `INPUT_DROPOUT`, or none where this is 0.
        epochs: the most passes over the training rows.
        batch: rows of a step.
        learning_rate: of the optimiser.
        weight_decay: added to the gradient, times the weight.
        patience: epochs without a lower loss on the validation rows before it stops; 0: it never stops, nor
            does it where no validation row has a label.
        optimizer: `adam`, or `sgd` (momentum 0.9, gradient clipped to length 5).
        seed: of weights, batches and dropout.
        dtype: of all arithmetic.
        weights: after `fit`: W, b of each layer in turn.

    Source:
        Hofmarcher et al. 2019, the network on CellProfiler's features as its authors configured it: three hidden
        layers of 2,048 rectified units, dropout 0.5 (features 0.1), SGD 0.01, weight decay 1e-4, batch 256, 100
        epochs; Glorot & Bengio 2010 for the weights, Kingma & Ba 2015 for Adam.
    """

    hidden: int = 512
    dropout: float = 0.5
    epochs: int = 100
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    patience: int = 0
    optimizer: str = "adam"
    seed: int = 0
    dtype: type[np.floating] = np.float32
    weights: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown(self.optimizer, "optimizer", OPTIMIZERS)

    def fit(self, X: Array, Y: Array, X_validation: Array, Y_validation: Array) -> None:
        """Train on X (n, d) and Y (n, A) of 0, 1 and NaN for no label; keep the best weights by validation."""
        rng = np.random.default_rng(self.seed)
        self.start(X.shape[1], Y.shape[1], rng)
        X, Y = X.astype(self.dtype), Y.astype(self.dtype)
        X_validation, Y_validation = X_validation.astype(self.dtype), Y_validation.astype(self.dtype)
        first = [np.zeros_like(weight) for weight in self.weights]
        second = [np.zeros_like(weight) for weight in self.weights]
        best, least, since, steps = self.weights, np.inf, 0, 0
        is_watched = self.patience > 0 and not np.isnan(Y_validation).all()
        for _ in range(self.epochs):
            order = rng.permutation(len(X))
            for start in range(0, len(X), self.batch):
                rows = order[start : start + self.batch]
                _, gradients = self.gradients(X[rows], Y[rows], self.masks(len(rows), rng))
                steps += 1
                self._step(gradients, first, second, steps)
            if is_watched:
                loss = masked_loss(self.logits(X_validation), Y_validation)
                if loss < least:
                    best, least, since = [weight.copy() for weight in self.weights], loss, 0
                else:
                    since += 1
                if since >= self.patience:
                    break
        if is_watched:
            self.weights = best

    def start(self, features: int, assays: int, rng: np.random.Generator) -> None:
        """Draw the weights: normal with variance 2 / (in + out); biases 0."""
        sizes = [features, *[self.hidden] * LAYERS, assays]
        self.weights = []
        for before, after in pairwise(sizes):
            drawn = rng.normal(0.0, np.sqrt(2 / (before + after)), (before, after))
            self.weights += [drawn.astype(self.dtype), np.zeros(after, self.dtype)]

    def masks(self, n: int, rng: np.random.Generator) -> list[Array]:
        """Draw what of the features and of each hidden layer stays, scaled up by what does not."""
        made = []
        for layer, weight in enumerate(self.weights[::2]):
            share = self.dropout if layer else min(INPUT_DROPOUT, self.dropout)
            kept = rng.random((n, len(weight)), dtype=np.float32) >= share
            made.append((kept / (1 - share)).astype(self.dtype))
        return made

    def logits(self, X: Array) -> Array:
        """Predict (n, A) log odds of activity, without dropout."""
        out = X.astype(self.dtype)
        for layer in range(LAYERS):
            out = np.maximum(out @ self.weights[2 * layer] + self.weights[2 * layer + 1], 0)
        return np.asarray(out @ self.weights[-2] + self.weights[-1])

    def gradients(self, X: Array, Y: Array, masks: list[Array]) -> tuple[float, list[Array]]:
        """Give the loss of a batch and its gradient, in the order of `weights`, without weight decay."""
        inputs = [X * masks[0]]
        for layer in range(LAYERS):
            reached = np.maximum(inputs[-1] @ self.weights[2 * layer] + self.weights[2 * layer + 1], 0)
            inputs.append(reached * masks[layer + 1])
        logits = inputs[-1] @ self.weights[-2] + self.weights[-1]
        labelled = ~np.isnan(Y)
        back = np.where(labelled, _sigmoid(logits) - Y, 0).astype(self.dtype) / max(int(labelled.sum()), 1)
        made: list[Array] = []
        for layer in range(LAYERS, -1, -1):
            made = [inputs[layer].T @ back, back.sum(axis=0), *made]
            if layer:
                # A unit that is 0, rectified or dropped, passes nothing back.
                back = (back @ self.weights[2 * layer].T) * masks[layer] * (inputs[layer] > 0)
        return masked_loss(logits, Y), made

    def _step(self, gradients: list[Array], first: list[Array], second: list[Array], steps: int) -> None:
        length = float(np.sqrt(sum(float((gradient**2).sum()) for gradient in gradients)))
        clip = min(1.0, CLIP / length) if length and self.optimizer == "sgd" else 1.0
        for weight, raw, m, v in zip(self.weights, gradients, first, second, strict=True):
            gradient = raw * clip + self.weight_decay * weight
            if self.optimizer == "sgd":
                m *= _MOMENTUM
                m += gradient
                weight -= self.learning_rate * m
                continue
            m += (1 - _BETA1) * (gradient - m)
            v += (1 - _BETA2) * (gradient**2 - v)
            mean, spread = m / (1 - _BETA1**steps), v / (1 - _BETA2**steps)
            weight -= self.learning_rate * mean / (np.sqrt(spread) + _EPSILON)


def masked_loss(logits: Array, Y: Array) -> float:
    """Binary cross-entropy, (n, A) logits and (n, A) of 0, 1, NaN: the mean over the labels that are there."""
    labelled = ~np.isnan(Y)
    p, y = logits[labelled].astype(np.float64), Y[labelled].astype(np.float64)
    return float((np.maximum(p, 0) - p * y + np.log1p(np.exp(-np.abs(p)))).sum() / max(len(p), 1))


def _sigmoid(logits: Array) -> Array:
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small))
