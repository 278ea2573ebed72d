"""Losses and small heads of the weakly supervised methods; those of metadata-guided learning are in `metadata`."""

from math import exp

import torch
from torch import Tensor, nn
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over n of −Σ_k t_k log softmax(logits)_k.

    Args:
        logits: (n, K).
        targets: (n,) int64 classes, or (n, K) distributions.
        smoothing: share s of every target that is spread evenly: t ← (1 − s) t + s / K.

    Returns:
        A scalar.

    Source:
        Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing)


class OnlineLabelSmoothing(nn.Module):
    """Cross-entropy against soft labels, one distribution a class, that follow the predictions from epoch to epoch.

    Before the first epoch the label of class c is T_c = (1 − smoothing) one_hot(c) + smoothing / K. After an epoch
    P_c is the mean predicted distribution of those examples of class c that were predicted as c while training, and
    T_c ← (1 − alpha) T_c + alpha P_c; a class that was never predicted right keeps its label. So the largest entry
    of T_c stays the truth.

    How the papers are read. Moshkov et al. 2024, equation (1), L = α L_hard + (1 − α) L_soft with α = .03, says that
    "α sets the shift from the current label to the new predicted label"; their released code shifts labels that
    little by little as well. By the letter of the equation 97 % of a label would be the last epoch's prediction and
    the truth forgotten by the second epoch: `alpha=0.97` gives that. They keep a label an example, found by a further
    pass over all cells; here there is one a class, gathered in passing, over examples predicted right, as in
    Zhang et al. 2021, equation (4) (whose loss keeps the hard label at a fixed weight beside the soft one).

    The labels and what an epoch gathered are buffers: a checkpoint holds them, and a resumed training goes on with
    them. With several processes `next_epoch` adds up what all of them gathered.

    Args:
        classes: K.
        alpha: of an epoch's prediction in the new label, 0 to 1.
        smoothing: of the first labels, 0 to 1.

    Source:
        Moshkov et al. 2024, "Online label smoothing"; Zhang et al. 2021, "Delving deep into label smoothing".
    """

    labels: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, classes: int, alpha: float = 0.03, smoothing: float = 0.1) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("labels", (1 - smoothing) * torch.eye(classes) + smoothing / classes)
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.zeros(classes))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (n, K) against the labels of the classes `targets` (n,) int64: a scalar."""
        return cross_entropy(logits, self.labels[targets])

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Gather the predictions of a training batch: logits (n, K), targets (n,) int64."""
        right = logits.argmax(dim=1) == targets
        chosen = (functional.one_hot(targets, len(self.counts)) * right[:, None]).to(self.sums.dtype)
        with torch.autocast(logits.device.type, enabled=False):
            # A product, not index_add_, which on a GPU adds up in any order.
            self.sums += chosen.T @ logits.to(self.sums.dtype).softmax(dim=1)
        self.counts += chosen.sum(dim=0)

    @torch.no_grad()
    def next_epoch(self) -> None:
        """Shift the labels towards what was gathered, and begin to gather anew."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.sums)
            torch.distributed.all_reduce(self.counts)
        predicted = self.sums / self.counts.clamp(min=1)[:, None]
        shifted = torch.lerp(self.labels, predicted, self.alpha)
        self.labels.copy_(torch.where((self.counts > 0)[:, None], shifted, self.labels))
        self.sums.zero_()
        self.counts.zero_()


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.strength * gradient, None  # type: ignore[attr-defined]


class GradientReversal(nn.Module):
    """Gives its input on as it is, and the gradient back times −strength.

    Args:
        strength: λ; may be set anew while training (`reversal_strength`).

    Source:
        Ganin & Lempitsky 2015, equations (7), (8).
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        """Return x of any shape."""
        return _Reversed.apply(x, self.strength)


def reversal_strength(progress: float, most: float = 1.0) -> float:
    """λ = most · (2 / (1 + exp(−10 progress)) − 1): none at the beginning (0) of a training, most at its end (1).

    Source:
        Ganin & Lempitsky 2015, section 4.1.
    """
    return most * (2 / (1 + exp(-10 * progress)) - 1)


class DomainHead(nn.Module):
    """Tells plates apart, behind a `GradientReversal`: what is before it learns to make that impossible.

    Args:
        dim: length of the embedding.
        domains: plates.
        hidden: widths of the dense layers, each with a ReLU.
        strength: of the reversal, `head.reversal.strength`.

    Source:
        Moshkov et al. 2024, "Gradient reversal layer" (1024, 512, 128).
    """

    def __init__(
        self, dim: int, domains: int, hidden: tuple[int, ...] = (1024, 512, 128), strength: float = 1.0
    ) -> None:
        super().__init__()
        self.reversal = GradientReversal(strength)
        widths = (dim, *hidden)
        layers: list[nn.Module] = []
        for wide, narrow in zip(widths, hidden, strict=False):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], domains))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, domains) of embeddings (n, dim)."""
        return self.layers(self.reversal(x))


class AttentionPool(nn.Module):
    """One embedding of a bag: the mean of its cells' embeddings, weighted by learned attention.

    z = Σ_k a_k h_k with a = softmax_k(wᵀ tanh(V h_k)); gated: wᵀ (tanh(V h_k) ⊙ sigmoid(U h_k)).

    Args:
        dim: length of an embedding.
        hidden: rows of V and U.
        gated: with U.

    Source:
        Ilse, Tomczak & Welling 2018, equations (7) to (9), without biases.
    """

    def __init__(self, dim: int, hidden: int = 128, gated: bool = False) -> None:
        super().__init__()
        self.v = nn.Linear(dim, hidden, bias=False)
        self.u = nn.Linear(dim, hidden, bias=False) if gated else None
        self.w = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pool bags (b, n, dim): embeddings (b, dim), and the attention of each cell (b, n), which sums to 1."""
        inner = self.v(x).tanh()
        if self.u is not None:
            inner = inner * self.u(x).sigmoid()
        attention = self.w(inner)[..., 0].softmax(dim=1)
        return torch.einsum("bn,bnd->bd", attention, x), attention


def triplet(
    embeddings: Tensor,
    positives: Tensor,
    negatives: Tensor,
    margin: float | Tensor = 0.2,
    preferred: Tensor | None = None,
) -> Tensor:
    """Triplet loss with semi-hard negatives, over all pairs of an anchor a and a positive p in a batch.

    Mean over pairs of max(0, d(a, p) − d(a, n) + margin), d the squared Euclidean distance of unit vectors. The
    negative n of a pair is the nearest that is farther from a than p is; where none is, the farthest there is. Where
    some of the anchor's negatives are preferred, only those are looked at. A pair without a negative is no pair.

    Args:
        embeddings: (n, dim), scaled to unit length here.
        positives: (n, n) bool, row a: which are to be near a. The diagonal does not count.
        negatives: (n, n) bool, row a: which are to be far from a.
        margin: for all pairs, or (n, n) a pair.
        preferred: (n, n) bool.

    Returns:
        A scalar; 0, with a gradient of 0, where there are no pairs.

    Source:
        Schroff, Kalenichenko & Philbin 2015 (FaceNet), equation (1) and section 3.2.
    """
    # In single precision under mixed precision too: distances of near neighbours are small differences.
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = functional.normalize(embeddings.float(), dim=1)
        distance = 2 - 2 * unit @ unit.T
    if preferred is not None:
        near = negatives & preferred
        negatives = torch.where(near.any(dim=1, keepdim=True), near, negatives)
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    anchor, positive = torch.nonzero(positives & others & negatives.any(dim=1, keepdim=True), as_tuple=True)
    if not len(anchor):
        return distance.sum() * 0
    to_positive, to_others, is_negative = distance[anchor, positive], distance[anchor], negatives[anchor]
    is_farther = is_negative & (to_others > to_positive[:, None])
    semi_hard = to_others.masked_fill(~is_farther, torch.inf).min(dim=1).values
    farthest = to_others.masked_fill(~is_negative, -torch.inf).max(dim=1).values
    to_negative = torch.where(is_farther.any(dim=1), semi_hard, farthest)
    wanted = margin[anchor, positive] if isinstance(margin, Tensor) else margin
    return (to_positive - to_negative + wanted).clamp(min=0).mean()
