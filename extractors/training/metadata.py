"""Losses of metadata-guided learning: compound, dose and plate say which cells belong together.

Spiegel et al. 2019 compare implicit and explicit techniques, "where both loss function and batch construction differ";
their implementation is in a supplement that is not published with the text, and Bray et al. 2022 add nothing. What
stands here is ours, after that idea:

- explicit: the embedding itself is arranged. Batches hold several cells of each treatment, from different plates
  (`samplers.pairs_across`), and a triplet loss pulls those of a treatment together, those of the same compound at a
  neighbouring dose less so, and pushes other compounds away: first those on the anchor's own plate, from which the
  plate cannot tell it apart.
- implicit: the embedding is arranged by what has to be read from it, in plain balanced batches: the compound, the
  dose among the compound's doses, and (reversed) not the plate.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from extractors.training.losses import DomainHead, cross_entropy, triplet
from warehouse.names import unknown

OBJECTIVES = ("explicit", "implicit")


class MetadataLoss(nn.Module):
    """The layers and the loss of metadata-guided learning, on a network's embedding.

    Args:
        dim: length of the embedding.
        compounds: how many there are.
        doses: D, the most that a compound has.
        plates: how many there are; implicit: what is read of them is reversed. 0: they have no say.
        objective: `explicit` or `implicit`.
        projection: explicit: length of the vector whose distances are learned, made by one linear layer.
        margin: as in `explicit`.
        reach: as in `explicit`.
        dose_weight: as in `implicit`.
        smoothing: as in `implicit`.

    Raises:
        UnknownNameError: an objective that is in no list.
    """

    def __init__(
        self,
        dim: int,
        compounds: int,
        doses: int,
        plates: int = 0,
        *,
        objective: str = "explicit",
        projection: int = 128,
        margin: float = 0.2,
        reach: int = 1,
        dose_weight: float = 0.5,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise unknown(objective, "objective", OBJECTIVES)
        self.objective, self.margin, self.reach = objective, margin, reach
        self.dose_weight, self.smoothing = dose_weight, smoothing
        if objective == "explicit":
            self.projection = nn.Linear(dim, projection)
        else:
            self.compound = nn.Linear(dim, compounds)
            self.dose = nn.Linear(dim, doses - 1) if doses > 1 else None
            self.plate = DomainHead(dim, plates, hidden=(128,)) if plates else None

    def forward(
        self,
        embeddings: Tensor,
        compounds: Tensor,
        doses: Tensor,
        plates: Tensor | None = None,
        levels: Tensor | None = None,
    ) -> Tensor:
        """Give the loss of embeddings (n, dim), and codes (n,) int64 as of `explicit` and `implicit`: a scalar."""
        if self.objective == "explicit":
            projected = self.projection(embeddings)
            return explicit(projected, compounds, doses, plates, margin=self.margin, reach=self.reach)
        return implicit(
            self.compound(embeddings),
            compounds,
            None if self.dose is None else self.dose(embeddings),
            doses,
            levels,
            None if self.plate is None else self.plate(embeddings),
            plates,
            dose_weight=self.dose_weight,
            smoothing=self.smoothing,
        )


def explicit(
    embeddings: Tensor,
    compounds: Tensor,
    doses: Tensor,
    plates: Tensor | None = None,
    *,
    margin: float = 0.2,
    reach: int = 1,
) -> Tensor:
    """Triplet loss whose margin falls with the distance in dose.

    A cell of the same compound, s steps of dose away, is a positive with the margin margin · (1 − s / (reach + 1)):
    with reach 1 the whole margin at the same dose, half of it one step away. Farther doses of the same compound are
    neither positive nor negative: a weak dose may look like no treatment. Cells of other compounds are negatives,
    those on the anchor's plate before all others (`losses.triplet`).

    Args:
        embeddings: (n, dim).
        compounds: (n,) int64; all negative controls are one compound.
        doses: (n,) int64, the rank of the dose among the compound's doses (`samplers.dose_ranks`), −1 unknown:
            unknown is the same dose as unknown, and neither near to nor far from any other.
        plates: (n,) int64, or None for no preference.
        margin: of cells of one treatment, in squared distance of unit vectors (0 to 4).
        reach: steps of dose within which a cell is a positive.

    Returns:
        A scalar.

    Source:
        After Spiegel et al. 2019, bioRxiv 725754; the definition is ours.
    """
    same = compounds[:, None] == compounds
    steps = (doses[:, None] - doses).abs()
    comparable = (doses[:, None] < 0) == (doses < 0)
    return triplet(
        embeddings,
        same & comparable & (steps <= reach),
        ~same,
        margin * (1 - steps / (reach + 1)),
        None if plates is None else plates[:, None] == plates,
    )


def ordinal(logits: Tensor, ranks: Tensor, levels: Tensor | None = None) -> Tensor:
    """Cross-entropy of "is the dose above the k-th?", over the k that the cell's compound has.

    Mean over cells of the mean over k = 0 … levels − 2 of the binary cross-entropy of logit k against [rank > k].
    A cell of unknown dose, or of a compound with one dose, says nothing and is not counted.

    Args:
        logits: (n, D − 1), D the most doses that a compound has.
        ranks: (n,) int64, 0 the lowest dose, −1 unknown.
        levels: (n,) int64, doses of the cell's compound; None: D for all.

    Returns:
        A scalar; 0, with a gradient of 0, where no cell counts.

    Source:
        Frank & Hall 2001, "A simple approach to ordinal classification".
    """
    above = torch.arange(logits.shape[1], device=logits.device)
    asked = (ranks >= 0)[:, None].expand_as(logits)
    if levels is not None:
        asked = asked & (above < levels[:, None] - 1)
    wrong = functional.binary_cross_entropy_with_logits(
        logits, (ranks[:, None] > above).to(logits.dtype), reduction="none"
    )
    a_cell = (wrong * asked).sum(dim=1) / asked.sum(dim=1).clamp(min=1)
    return a_cell.sum() / asked.any(dim=1).sum().clamp(min=1)


def implicit(
    compound_logits: Tensor,
    compounds: Tensor,
    dose_logits: Tensor | None = None,
    doses: Tensor | None = None,
    levels: Tensor | None = None,
    plate_logits: Tensor | None = None,
    plates: Tensor | None = None,
    *,
    dose_weight: float = 0.5,
    plate_weight: float = 0.1,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the compound + dose_weight · `ordinal` + plate_weight · cross-entropy of the plate.

    Args:
        compound_logits: (n, K).
        compounds: (n,) int64.
        dose_logits: (n, D − 1), or None: no dose.
        doses: (n,) int64, as in `ordinal`.
        levels: (n,) int64, as in `ordinal`.
        plate_logits: (n, plates) of a `losses.DomainHead`, whose gradient is reversed, or None: no plate.
        plates: (n,) int64.
        dose_weight: 0 or more.
        plate_weight: 0 or more.
        smoothing: of the compound's label.

    Returns:
        A scalar.

    Source:
        After Spiegel et al. 2019, bioRxiv 725754; the definition is ours.
    """
    loss = cross_entropy(compound_logits, compounds, smoothing)
    if dose_logits is not None and dose_logits.shape[1]:
        loss = loss + dose_weight * ordinal(dose_logits, doses, levels)
    if plate_logits is not None:
        loss = loss + plate_weight * cross_entropy(plate_logits, plates)
    return loss
