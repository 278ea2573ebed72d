"""Each loss against a loop written from its equation; gradients by numbers, and reversed where they should be."""

from math import exp, log, tanh

import numpy as np
import pytest
import torch
from torch.nn import functional

from extractors.training.losses import (
    AttentionPool,
    DomainHead,
    GradientReversal,
    OnlineLabelSmoothing,
    cross_entropy,
    reversal_strength,
    triplet,
)
from extractors.training.metadata import MetadataLoss, explicit, implicit, ordinal
from warehouse.errors import UnknownNameError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def codes(most, n, seed=0):
    return torch.randint(most, (n,), generator=torch.Generator().manual_seed(seed))


def softmax(row):
    row = [exp(float(value)) for value in row]
    return [value / sum(row) for value in row]


# ------------------------------------------------------------------------------------------------ classification


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_soft", [False, True])
def test_cross_entropy_equals_its_sum(smoothing, is_soft):
    logits, classes = drawn(6, 4), codes(4, 6)
    soft = torch.softmax(drawn(6, 4, seed=1), dim=1) if is_soft else functional.one_hot(classes, 4).double()
    expected = 0.0
    for row, target in zip(logits, soft, strict=True):
        smooth = [(1 - smoothing) * float(t) + smoothing / 4 for t in target]
        expected -= sum(t * log(p) for t, p in zip(smooth, softmax(row), strict=True)) / 6
    targets = soft if is_soft else classes
    assert float(cross_entropy(logits, targets, smoothing)) == pytest.approx(expected, abs=1e-12)


def naive_online(epochs, classes, alpha, smoothing):
    """Labels after each epoch of (logits, targets) batches."""
    labels = np.full((classes, classes), smoothing / classes) + (1 - smoothing) * np.eye(classes)
    made = [labels.copy()]
    for batches in epochs:
        for c in range(classes):
            right = [
                softmax(row)
                for logits, targets in batches
                for row, target in zip(logits, targets, strict=True)
                if int(target) == c and int(row.argmax()) == c
            ]
            if right:
                labels[c] = (1 - alpha) * labels[c] + alpha * np.mean(right, axis=0)
        made.append(labels.copy())
    return made


@pytest.mark.parametrize("alpha", [0.03, 0.97])
def test_online_labels_follow_the_predictions_as_the_loop_says(alpha):
    epochs = [
        [(drawn(9, 5, seed=10 * e + b), codes(5, 9, seed=10 * e + b)) for b in range(3)] for e in range(3)
    ]
    loss = OnlineLabelSmoothing(5, alpha=alpha, smoothing=0.1).double()
    for batches, expected in zip(epochs, naive_online(epochs, 5, alpha, 0.1), strict=False):
        np.testing.assert_allclose(loss.labels, expected, atol=1e-7)
        for logits, targets in batches:
            row_losses = [
                -sum(t * log(p) for t, p in zip(expected[target], softmax(row), strict=True))
                for row, target in zip(logits, targets, strict=True)
            ]
            assert float(loss(logits, targets)) == pytest.approx(np.mean(row_losses), abs=1e-6)
            loss.update(logits, targets)
        loss.next_epoch()
    np.testing.assert_allclose(loss.labels, naive_online(epochs, 5, alpha, 0.1)[-1], atol=1e-7)
    assert loss.labels.sum(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    assert loss.labels.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


def test_online_labels_worked_by_hand():
    # Two classes. Of class 0 one example is predicted right, at 3 : 1, and one wrong; of class 1 none is right.
    loss = OnlineLabelSmoothing(2, alpha=0.2, smoothing=0.1)
    np.testing.assert_allclose(loss.labels, [[0.95, 0.05], [0.05, 0.95]], atol=1e-7)
    loss.update(torch.tensor([[log(3), 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1]))
    loss.next_epoch()
    renewed = [0.8 * 0.95 + 0.2 * 0.75, 0.8 * 0.05 + 0.2 * 0.25]
    np.testing.assert_allclose(loss.labels, [renewed, [0.05, 0.95]], atol=1e-6)
    before = loss.labels.clone()
    loss.next_epoch()  # nothing was gathered since
    assert torch.equal(loss.labels, before)


def test_a_checkpoint_in_the_middle_of_an_epoch_holds_what_was_gathered():
    whole, part = OnlineLabelSmoothing(3), OnlineLabelSmoothing(3)
    first, second = ((drawn(8, 3, seed=s).float(), codes(3, 8, seed=s)) for s in (1, 2))
    for loss in (whole, part):
        loss.update(*first)
    resumed = OnlineLabelSmoothing(3)
    resumed.load_state_dict(part.state_dict())
    for loss in (whole, resumed):
        loss.update(*second)
        loss.next_epoch()
    assert torch.equal(whole.labels, resumed.labels)


def test_online_labels_take_no_gradient():
    logits = drawn(4, 3).requires_grad_()
    loss = OnlineLabelSmoothing(3).double()
    loss.update(logits, codes(3, 4))
    loss.next_epoch()
    assert not loss.labels.requires_grad
    assert torch.autograd.gradcheck(lambda z: loss(z, codes(3, 4)), logits)


# ------------------------------------------------------------------------------------------------ reversal


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_gradient_comes_back_reversed_and_the_input_goes_on(strength):
    x = drawn(4, 3).requires_grad_()
    made = GradientReversal(strength)(x)
    assert torch.equal(made, x)
    (made**3).sum().backward()
    torch.testing.assert_close(x.grad, -strength * 3 * x.detach() ** 2)


def test_a_plate_head_learns_plates_and_what_is_before_it_unlearns_them():
    torch.manual_seed(0)
    head = DomainHead(6, 4, strength=0.5)
    assert [tuple(layer.weight.shape) for layer in head.layers if hasattr(layer, "weight")] == [
        (1024, 6), (512, 1024), (128, 512), (4, 128),
    ]  # fmt: skip
    x, plates = drawn(8, 6).float(), codes(4, 8)
    before = x.clone().requires_grad_()
    reversed_loss = cross_entropy(head(before), plates)
    reversed_loss.backward()
    of_the_head = [parameter.grad.clone() for parameter in head.parameters()]
    head.zero_grad()
    straight = x.clone().requires_grad_()
    loss = cross_entropy(head.layers(straight), plates)
    loss.backward()
    assert loss.item() == reversed_loss.item()
    torch.testing.assert_close(before.grad, -0.5 * straight.grad)
    for ours, plain in zip(of_the_head, head.parameters(), strict=True):
        torch.testing.assert_close(ours, plain.grad)


def test_the_reversal_grows_from_none_to_its_most():
    assert reversal_strength(0) == 0
    assert reversal_strength(0.5, most=2.0) == pytest.approx(2 * tanh(2.5))
    assert reversal_strength(1) == pytest.approx(0.99990920, abs=1e-8)


# ------------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("gated", [False, True])
def test_attention_equals_the_loop_over_bags_and_cells(gated):
    torch.manual_seed(0)
    pool, x = AttentionPool(5, hidden=7, gated=gated).double(), drawn(3, 4, 5)
    pooled, attention = pool(x)
    v, w = pool.v.weight.detach().numpy(), pool.w.weight.detach().numpy()[0]
    for b, bag in enumerate(x.numpy()):
        scores = []
        for h in bag:
            inner = np.tanh(v @ h)
            if gated:
                inner = inner / (1 + np.exp(-(pool.u.weight.detach().numpy() @ h)))
            scores.append(w @ inner)
        weights = np.array(softmax(scores))
        np.testing.assert_allclose(attention[b].detach(), weights, atol=1e-12)
        mean = sum(a * h for a, h in zip(weights, bag, strict=True))
        np.testing.assert_allclose(pooled[b].detach(), mean, atol=1e-12)


def test_attention_does_not_ask_for_the_order_of_the_cells_and_every_part_learns():
    torch.manual_seed(0)
    pool, x = AttentionPool(5, gated=True).double(), drawn(2, 6, 5).requires_grad_()
    order = torch.randperm(6)
    torch.testing.assert_close(pool(x)[0], pool(x[:, order])[0])
    torch.testing.assert_close(pool(x)[1][:, order], pool(x[:, order])[1])
    (pool(x)[0] ** 2).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in pool.parameters())
    assert (x.grad.abs().amax(dim=2) > 0).all()


# ------------------------------------------------------------------------------------------------ triplets


def naive_triplet(x, positives, negatives, margin, preferred=None):
    unit = [np.asarray(row) / np.linalg.norm(row) for row in x]
    losses = []
    for a in range(len(unit)):
        far = [n for n in range(len(unit)) if negatives[a][n]]
        near = [n for n in far if preferred is not None and preferred[a][n]]
        far = [((unit[a] - unit[n]) ** 2).sum() for n in near or far]
        for p in range(len(unit)):
            if p == a or not positives[a][p] or not far:
                continue
            to_positive = ((unit[a] - unit[p]) ** 2).sum()
            semi_hard = [d for d in far if d > to_positive]
            losses.append(max(0.0, to_positive - (min(semi_hard) if semi_hard else max(far)) + margin(a, p)))
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_triplets_equal_the_loop_over_anchors_and_positives(seed):
    x, labels, plates = drawn(14, 3, seed=seed), codes(4, 14, seed=seed), codes(3, 14, seed=seed + 9)
    same, plate = labels[:, None] == labels, plates[:, None] == plates
    for preferred in (None, plate):
        expected = naive_triplet(x.numpy(), same, ~same, lambda a, p: 0.4, preferred)
        assert expected > 0.05
        assert float(triplet(x, same, ~same, 0.4, preferred)) == pytest.approx(expected, abs=1e-6)
    assert float(triplet(x, same, ~same, 0.4, plate)) != float(triplet(x, same, ~same, 0.4))


def test_triplets_worked_by_hand():
    # On the circle: anchors at 0° and 90° are of one kind, 180° of another. d(0°, 90°) = 2, d(0°, 180°) = 4,
    # d(90°, 180°) = 2. From 0°: 2 − 4 + 1 < 0. From 90°: no negative is farther than the positive, so 2 − 2 + 1.
    x = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-3.0, 0.0]])
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert float(triplet(x, same, ~same, 1.0)) == pytest.approx(0.5)


def test_the_gradient_of_triplets_is_that_of_numbers():
    labels = codes(3, 10)
    same = labels[:, None] == labels

    def of(values):
        return triplet(values, same, ~same, 0.4)

    x = drawn(10, 4).float().requires_grad_()
    of(x).backward()
    for i, j in ((0, 0), (3, 2), (9, 3)):
        step = torch.zeros_like(x)
        step[i, j] = 1e-3
        by_numbers = (of(x.detach() + step) - of(x.detach() - step)) / 2e-3
        assert float(x.grad[i, j]) == pytest.approx(float(by_numbers), abs=2e-3)
    assert x.grad.abs().max() > 0.01


def test_a_batch_without_pairs_costs_nothing_and_can_be_learned_from():
    x = drawn(4, 3).float().requires_grad_()
    for same in (torch.eye(4).bool(), torch.ones(4, 4).bool()):
        loss = triplet(x, same, ~same)
        assert loss.item() == 0
        loss.backward()
        assert x.grad.abs().max() == 0


# ------------------------------------------------------------------------------------------------ metadata


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_explicit_guidance_grades_the_margin_by_steps_of_dose(reach):
    x, compounds, plates = drawn(20, 4), codes(3, 20, seed=1), codes(2, 20, seed=2)
    doses = codes(5, 20, seed=3) - 1
    positives, negatives = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    for a in range(20):
        for b in range(20):
            negatives[a, b] = compounds[a] != compounds[b]
            both = (doses[a] < 0) == (doses[b] < 0)
            positives[a, b] = not negatives[a, b] and both and abs(int(doses[a] - doses[b])) <= reach

    def margin(a, p):
        return 0.4 * (1 - abs(int(doses[a] - doses[p])) / (reach + 1))

    for names, groups in ((None, None), (plates[:, None] == plates, plates)):
        expected = naive_triplet(x.numpy(), positives, negatives, margin, names)
        made = explicit(x, compounds, doses, groups, margin=0.4, reach=reach)
        assert expected > 0.05
        assert float(made) == pytest.approx(expected, abs=1e-6)


def test_a_far_dose_is_neither_pulled_nor_pushed_and_a_near_one_less():
    # One compound at doses 0, 1 and 3, and a second compound: margins .4 at no step, .2 at one, nothing at more.
    x = torch.eye(5)
    compounds, doses = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 1, 3, 0])
    # All distances are 2: each pair costs its margin. Pairs: 0-1 (.4), 0-2 (.2), 1-2 (.2), both ways.
    assert float(explicit(x, compounds, doses, margin=0.4)) == pytest.approx((0.4 + 0.2 + 0.2) / 3)


def naive_ordinal(logits, ranks, levels):
    cells = []
    for row, rank, level in zip(logits, ranks, levels, strict=True):
        if rank < 0 or level < 2:
            continue
        asked = range(min(level - 1, len(row)))
        chances = [1 / (1 + exp(-float(row[k]))) for k in asked]
        cells.append(
            np.mean([-log(p) if rank > k else -log(1 - p) for k, p in zip(asked, chances, strict=True)])
        )
    return float(np.mean(cells)) if cells else 0.0


def test_the_dose_is_asked_for_by_thresholds_that_the_compound_has():
    ranks, levels = [0, 1, 3, -1, 0, 2], [4, 2, 4, 4, 1, 3]
    logits = drawn(6, 3)
    expected = naive_ordinal(logits, ranks, levels)
    made = ordinal(logits, torch.tensor(ranks), torch.tensor(levels))
    assert float(made) == pytest.approx(expected, abs=1e-12)
    unbounded = ordinal(logits, torch.tensor(ranks))
    assert float(unbounded) == pytest.approx(naive_ordinal(logits, ranks, [4] * 6), abs=1e-12)


def test_the_dose_worked_by_hand_and_nothing_to_say():
    logits = torch.tensor(
        [[log(3), -log(3)]], requires_grad=True
    )  # above the first: 3/4; above the second: 1/4
    assert ordinal(logits, torch.tensor([1])).item() == pytest.approx(-log(3 / 4))
    loss = ordinal(logits, torch.tensor([-1]))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.abs().max() == 0


def test_implicit_guidance_adds_compound_dose_and_plate():
    compound, dose, plate = drawn(6, 4), drawn(6, 2, seed=1), drawn(6, 3, seed=2)
    compounds, doses, plates, levels = codes(4, 6), codes(3, 6), codes(3, 6, seed=5), torch.full((6,), 3)
    first = -np.mean([log(softmax(row)[c]) for row, c in zip(compound, compounds, strict=True)])
    second = naive_ordinal(dose, doses.tolist(), levels.tolist())
    third = -np.mean([log(softmax(row)[c]) for row, c in zip(plate, plates, strict=True)])
    assert float(implicit(compound, compounds)) == pytest.approx(first, abs=1e-12)
    assert float(implicit(compound, compounds, dose[:, :0], doses)) == pytest.approx(first, abs=1e-12)
    made = implicit(
        compound, compounds, dose, doses, levels, plate, plates, dose_weight=0.7, plate_weight=0.2
    )
    assert float(made) == pytest.approx(first + 0.7 * second + 0.2 * third, abs=1e-12)


@pytest.mark.parametrize("objective", ["explicit", "implicit"])
def test_every_layer_of_guidance_learns_and_so_does_the_network(objective):
    torch.manual_seed(0)
    loss = MetadataLoss(6, 4, 3, objective=objective, projection=5)
    x = drawn(12, 6).float().requires_grad_()
    compounds, doses, plates = codes(4, 12), codes(3, 12), codes(2, 12)
    loss(x, compounds, doses, plates).backward()
    assert x.grad.abs().max() > 0
    # Distances do not change when all vectors are moved... but angles do: the projection's bias learns as well.
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())


def test_guidance_can_be_learned_from_plates_that_all_look_different():
    # Two compounds on two plates; the plate moves a cell by far more than the compound does.
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    compounds, plates = torch.arange(64) % 2, torch.arange(64) // 2 % 2
    x = torch.randn(64, 4, generator=rng) * 0.1
    x[:, 0] += 4.0 * plates
    x[:, 1] += 0.5 * compounds
    loss = MetadataLoss(4, 2, 1, projection=2)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    for _ in range(150):
        optimiser.zero_grad()
        value = loss(x, compounds, torch.zeros_like(compounds), plates)
        value.backward()
        optimiser.step()
        values.append(value.item())
    projected = functional.normalize(loss.projection(x), dim=1)
    nearest = (projected @ projected.T - 2 * (plates[:, None] == plates).float()).argmax(dim=1)
    share = (compounds[nearest] == compounds).float().mean()
    assert values[-1] < 0.3 * values[0]
    assert share > 0.9  # the nearest cell of the other plate is of the same compound


def test_mixed_precision_keeps_distances_and_labels_in_single_precision():
    x, labels = drawn(12, 8).float() + 3, codes(3, 12)
    same = labels[:, None] == labels
    plain, mixed = OnlineLabelSmoothing(8), OnlineLabelSmoothing(8)
    seen = x.argmax(dim=1)
    plain.update(x, seen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        made = triplet(x, same, ~same)
        mixed.update(x, seen)
    assert made.dtype == torch.float32
    assert torch.equal(made, triplet(x, same, ~same))
    assert mixed.sums.abs().sum() > 0
    assert torch.equal(plain.sums, mixed.sums)


def test_an_unknown_objective_is_named():
    with pytest.raises(UnknownNameError, match=r"unknown objective 'explicite'. Did you mean 'explicit'\?"):
        MetadataLoss(4, 2, 1, objective="explicite")
