"""Lightning modules of the weakly supervised methods: what a step computes, and what is learned from it."""

from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from extractors.training import samplers
from extractors.training.augment import Augmentation
from extractors.training.data import Batch, Cells, Plan, in_steps
from extractors.training.losses import AttentionPool, DomainHead, OnlineLabelSmoothing, reversal_strength
from extractors.training.metadata import MetadataLoss
from extractors.training.networks import Network
from extractors.training.settings import Settings

#: The whole range of each type in which crops are kept.
RANGES = {torch.uint8: 255.0, torch.uint16: 65535.0}


def scaled(pixels: Tensor) -> Tensor:
    """Bring pixels as they are kept, (b, C, S, S) uint8 or uint16, to float32 on a scale of 0 to 1."""
    return pixels.float() / RANGES[pixels.dtype]


class Losses(NamedTuple):
    """What a method says of a batch.

    Attributes:
        total: is made small.
        of_labels: the part that hangs on treatments alone: it is logged, and may stop training. To know plates well
            is no merit.
        logits: (b, classes), None where the method has none.
    """

    total: Tensor
    of_labels: Tensor
    logits: Tensor | None


class Learner(lightning.LightningModule):
    """A network, a head that learns from labels, and how a batch becomes a loss.

    Args:
        network: of `extractors.training.networks`.
        settings: of the method.
        counts: of `Cells.counts`: how many classes, compounds, doses and plates there are.
    """

    version = "1"

    def __init__(self, network: Network, settings: Settings, counts: dict[str, int]) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.settings, self.counts = settings, counts
        for name, value in (("mean", 0.0), ("std", 1.0)):
            self.register_buffer(name, torch.full((network.channels, 1, 1), value))
        self.augment = Augmentation(settings)
        self.head = self.make_head()
        self.training_scores = nn.ModuleDict(_scores(counts["classes"]))
        self.validation_scores = nn.ModuleDict(_scores(counts["classes"]))
        #: Losses with their batches, that `callbacks.NumbersOnly` has yet to look at.
        self.pending: list[tuple[Tensor, Batch]] = []

    def scale_by(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Take the mean and standard deviation of each channel, (C,) of pixels on a scale of 0 to 1."""
        self.mean = torch.as_tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = torch.as_tensor(std, dtype=torch.float32)[:, None, None]

    def make_head(self) -> nn.Module:
        """Make what comes after the network; its tensors are kept beside the network's."""
        return nn.Linear(self.network.final_dim, self.counts["classes"])

    def plan(self, cells: Cells, chosen: np.ndarray, rng: np.random.Generator) -> Plan:
        """Plan an epoch: as many cells of each class, in random order."""
        wanted = self.settings.cells_per_class or None
        drawn = chosen[samplers.balanced(cells.labels[chosen], wanted, rng)]
        return Plan(in_steps(drawn, self.settings.batch_size))

    #: How held-out cells are planned; None for each once.
    validate: Any = None

    def losses(self, batch: Batch) -> Losses:
        """Look at a batch."""
        logits = self.head(self.network(batch["input"]).final)
        loss = self.loss_of(logits, batch["labels"])
        return Losses(loss, loss, logits)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the classification's loss."""
        return cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)

    # ---------------------------------------------------------------- steps

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into the network's input, on the device; training changes them at random first."""
        pixels = scaled(batch["pixels"])
        if self.trainer.training:
            pixels = self.augment(pixels, self.generator(batch["step"]))
        return batch | {"input": self.normalised(pixels)}

    def normalised(self, pixels: Tensor) -> Tensor:
        """Centre and scale the channels of pixels, (b, C, S, S) on a scale of 0 to 1."""
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def generator(self, step: int) -> torch.Generator:
        """Make the chance of one step: it hangs on seed, epoch and step, not on what ran before."""
        return torch.Generator().manual_seed(self._seed(step))

    def on_train_epoch_start(self) -> None:
        """Dropout draws from the global generator: it too begins anew with each epoch."""
        torch.manual_seed(self._seed(2**20))

    def _seed(self, part: int) -> int:
        seeds = np.random.SeedSequence([self.settings.seed, self.current_epoch, part])
        return int(seeds.generate_state(1, np.uint64)[0] >> 1)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Give the loss of a step."""
        found = self.losses(batch)
        self._log("", found, batch)
        self.pending.append((found.total.detach(), batch))
        return found.total

    def validation_step(self, batch: Batch, _: int) -> None:
        """Score held-out cells."""
        self._log("validation_", self.losses(batch), batch)

    def _log(self, start: str, found: Losses, batch: Batch) -> None:
        """Log the loss, and accuracy and F1 where there are logits; the names of validation have a start."""
        labels = batch["labels"]
        self.log(
            f"{start}loss", found.of_labels, prog_bar=True, on_step=not start, on_epoch=True, batch_size=len(labels),
            sync_dist=bool(start),
        )  # fmt: skip
        if found.logits is None:
            return
        for name, score in (self.validation_scores if start else self.training_scores).items():
            score.update(found.logits.detach(), labels)
            self.log(f"{start}{name}", score, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        """Make the optimizer and, where the learning rate changes, its schedule; it moves once an epoch."""
        s = self.settings
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer
        if s.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                weights, s.learning_rate, s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0
            )
        else:
            optimizer = torch.optim.AdamW(weights, s.learning_rate, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: rate(s, epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def kept(self) -> dict[str, Tensor]:
        """Give the tensors that make up the model: those of the network and of the head."""
        parts = {"network": self.network, "head": self.head}
        return {
            f"{name}.{key}": tensor.detach().clone()
            for name, part in parts.items()
            for key, tensor in part.state_dict().items()
        }


def _scores(classes: int) -> dict[str, Metric]:
    return {
        # Unchecked: a check makes the processor wait for the GPU at every step.
        "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
        "f1": MulticlassF1Score(classes, average="macro", validate_args=False),
    }


def rate(settings: Settings, epoch: int) -> float:
    """Give the share of the learning rate in an epoch: a linear rise, then constant or half a cosine."""
    if epoch < settings.warmup:
        return (epoch + 1) / (settings.warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (epoch - settings.warmup) / max(settings.epochs - settings.warmup, 1)
    return 0.5 * (1 + float(np.cos(np.pi * done)))


class OnlineSmoothing(Learner):
    """Labels that become, epoch by epoch, what the network says of a class's cells (Moshkov et al., equation 1)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        s: Any = self.settings
        self.smoothing = OnlineLabelSmoothing(
            self.counts["classes"], alpha=s.alpha, smoothing=s.label_smoothing
        )

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compare with the labels of the epoch before."""
        if self.training:
            self.smoothing.update(logits.detach(), labels)
        return self.smoothing(logits, labels)

    def on_train_epoch_end(self) -> None:
        """Renew the labels."""
        self.smoothing.next_epoch()


class AttentionBags(Learner):
    """A treatment is told from a bag of cells of which some are controls; attention says which are not."""

    def make_head(self) -> nn.Module:
        """Make the attention and the classifier of what it gathers."""
        s: Any = self.settings
        return AttentionHead(self.network.final_dim, s.attention, self.counts["classes"])

    def plan(self, cells: Cells, chosen: np.ndarray, rng: np.random.Generator) -> Plan:
        """Plan as many bags of each class; a step has `batch_size` bags."""
        s: Any = self.settings
        bags, labels = samplers.bags(
            cells.labels[chosen], cells.is_control[chosen], s.bag_size, s.least_treated, s.most_treated,
            s.bags_per_class or None, rng,
        )  # fmt: skip
        steps = [slice(start, start + s.batch_size) for start in range(0, len(bags), s.batch_size)]
        return Plan([chosen[bags[step]].reshape(-1) for step in steps], [labels[step] for step in steps])

    @property
    def validate(self) -> Any:  # type: ignore[override]
        """Held-out cells are gathered into bags as those of training are."""
        return self.plan

    def losses(self, batch: Batch) -> Losses:
        """Classify bags."""
        s: Any = self.settings
        final = self.network(batch["input"]).final
        logits = self.head(final.reshape(-1, s.bag_size, final.shape[1]))
        loss = self.loss_of(logits, batch["labels"])
        return Losses(loss, loss, logits)


class AttentionHead(nn.Module):
    """Weighs the cells of a bag and classifies their mean: (b, cells, d) to (b, classes).

    Args:
        dim: d.
        hidden: units of the attention.
        classes: that are told apart.
    """

    def __init__(self, dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.pool = AttentionPool(dim, hidden)
        self.classify = nn.Linear(dim, classes)

    def forward(self, bags: Tensor) -> Tensor:
        """Classify bags."""
        return self.classify(self.pool(bags)[0])


class PlateReversal(Learner):
    """A branch learns to tell plates apart, and its gradient, reversed, makes the network forget them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        s: Any = self.settings
        self.domain = DomainHead(self.network.final_dim, self.counts["plates"], s.domain_widths())

    def losses(self, batch: Batch) -> Losses:
        """Add the classification of plates, seen through the reversal."""
        s: Any = self.settings
        final = self.network(batch["input"]).final
        logits = self.head(final)
        self.domain.reversal.strength = reversal_strength((self.current_epoch + 1) / s.epochs, s.reversal)
        plates = cross_entropy(self.domain(final), batch["plates"])
        if self.training:
            self.log("plate_loss", plates, on_step=False, on_epoch=True, batch_size=len(final))
        loss = self.loss_of(logits, batch["labels"])
        return Losses(loss + plates, loss, logits)


class MetadataGuided(Learner):
    """Compound, dose and plate say which cells should look alike (after Spiegel et al. 2019)."""

    def make_head(self) -> nn.Module:
        """Make the loss's own layers: a projection, or classifiers of compound and dose."""
        s: Any = self.settings
        return MetadataLoss(
            self.network.final_dim, self.counts["compounds"], self.counts["doses"], self.counts["plates"],
            objective=s.objective, projection=s.projection, margin=s.margin, dose_weight=s.dose_weight,
            smoothing=s.label_smoothing,
        )  # fmt: skip

    @property
    def validate(self) -> Any:  # type: ignore[override]
        """Held-out cells are gathered as those of training are."""
        s: Any = self.settings
        return self.plan if s.objective == "explicit" else None

    def plan(self, cells: Cells, chosen: np.ndarray, rng: np.random.Generator) -> Plan:
        """Plan steps of a few cells of each of some classes, from different plates where there are."""
        s: Any = self.settings
        if s.objective == "implicit":
            return super().plan(cells, chosen, rng)
        # Doses are neighbours only where each is a class of its own.
        kin = (
            {"compounds": cells.compounds[chosen], "doses": cells.doses[chosen]}
            if s.label == "treatment"
            else {}
        )
        steps = samplers.pairs_across(
            cells.labels[chosen], cells.plates[chosen], s.batch_size, s.cells_of_class, s.cells_per_class or None, rng,
            **kin,
        )  # fmt: skip
        return Plan([chosen[step] for step in steps])

    def losses(self, batch: Batch) -> Losses:
        """Compare cells by what is known of them."""
        final = self.network(batch["input"]).final
        loss = self.head(final, batch["compounds"], batch["doses"], batch["plates"], batch["levels"])
        return Losses(loss, loss, None)
