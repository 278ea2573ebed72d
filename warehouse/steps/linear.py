"""What the steps that mix features share: principal directions, and linear maps in little memory."""

from collections.abc import Iterator

import numpy as np

from warehouse.steps.base import Fit, Matrix

# Rows that are centred and multiplied at a time: enough for the product to run at full speed, few enough for the
# centred copy to stay small whatever the number of wells.
BLOCK = 2048
# Squares of singular values further apart than this come out of XᵀX with less than eight digits, or not at all.
WELL_CONDITIONED = 1e-8


def principal(X: Matrix, mean: Matrix | None, scale: Matrix | None = None) -> tuple[Matrix, Matrix]:
    """Decompose (X − mean) / scale = U·diag(singular)·components without a copy of X.

    Of many wells the eigenvectors of XᵀX are taken, where it is well-conditioned: that is several times as quick. Else
    the QR decomposition is, block by block, each together with the R of those before: the last R has the singular
    values and directions of the whole.

    Args:
        X: (n, d).
        mean: (d,), or None for nothing to subtract.
        scale: (d,), or None for 1.

    Returns:
        singular (r,), falling, and components (r, d), orthonormal; r is the rank, at least 1. The largest element of
        each component is positive, as in scikit-learn's PCA.
    """
    n, d = X.shape
    found = _by_products(X, mean, scale) if n >= 4 * d else None
    singular, components = _by_triangles(X, mean, scale) if found is None else found
    # At least one direction, so that a fit never holds an empty matrix.
    rank = max(1, int((singular > np.finfo(np.float64).eps * max(n, d) * singular[0]).sum()))
    components = components[:rank]
    largest = components[np.arange(rank), np.abs(components).argmax(axis=1)]
    return singular[:rank], components * np.where(largest < 0, -1.0, 1.0)[:, None]


def _by_products(X: Matrix, mean: Matrix | None, scale: Matrix | None) -> tuple[Matrix, Matrix] | None:
    """Singular values (d,) and directions (d, d) by XᵀX; None where it is not well-conditioned."""
    product = np.zeros((X.shape[1], X.shape[1]))
    for _, block in _scaled(X, mean, scale):
        product += block.T @ block
    values, vectors = np.linalg.eigh(product)
    if not values[0] > WELL_CONDITIONED * values[-1]:
        return None
    return np.sqrt(values[::-1]), np.asarray(vectors.T[::-1])


def _by_triangles(X: Matrix, mean: Matrix | None, scale: Matrix | None) -> tuple[Matrix, Matrix]:
    """Singular values (k,) and directions (k, d) by QR decompositions, k = min(n, d)."""
    d = X.shape[1]
    small = np.empty((0, d))
    for _, block in _scaled(X, mean, scale, max(BLOCK, 8 * d)):
        small = np.vstack([small, block])
        if len(small) > d:
            small = np.asarray(np.linalg.qr(small, mode="r"))
    _, singular, directions = np.linalg.svd(small, full_matrices=False)
    return singular, directions


def symmetric(components: Matrix, inside: Matrix, outside: float) -> Fit:
    """The map that scales by `inside` along the components and by `outside` in every other direction.

    Args:
        components: (r, d), orthonormal.
        inside: (r,).
        outside: of the directions that are no component's.

    Returns:
        ``matrix`` (d, d) or, where that is larger, ``components``, ``inside`` and ``outside`` (1,).
    """
    rank, d = components.shape
    if 2 * rank < d:
        return {"components": components, "inside": inside, "outside": np.array([outside])}
    if rank == d:
        return {"matrix": (components.T * inside) @ components}
    matrix = (components.T * (inside - outside)) @ components
    matrix[np.diag_indices(d)] += outside
    return {"matrix": matrix}


def apply(X: Matrix, fit: Fit) -> Matrix:
    """Return (X − mean) / scale, mapped by what `symmetric` made or by any ``matrix`` (k, d), as (n, k).

    ``mean`` and ``scale``, each (d,), may be absent from the fit.
    """
    if "matrix" in fit:
        matrix = fit["matrix"].T
        result = np.empty((len(X), matrix.shape[1]))
        for rows, centred in _scaled(X, fit.get("mean"), fit.get("scale")):
            np.matmul(centred, matrix, out=result[rows])
        return result
    components, outside = fit["components"], float(fit["outside"][0])
    result = np.empty(X.shape)
    for rows, centred in _scaled(X, fit.get("mean"), fit.get("scale")):
        part = result[rows]
        np.matmul((centred @ components.T) * (fit["inside"] - outside), components, out=part)
        # The block may be a view of X itself, where there is nothing to subtract: it is not written to.
        part += centred * outside
    return result


def _scaled(
    X: Matrix, mean: Matrix | None, scale: Matrix | None, size: int = BLOCK
) -> Iterator[tuple[slice, Matrix]]:
    """Give (X − mean) / scale in blocks of rows; the next one takes the place of the last."""
    space = np.empty((min(size, len(X)), X.shape[1]))
    for first in range(0, len(X), size):
        rows = slice(first, min(len(X), first + size))
        block = X[rows]
        if mean is not None:
            block = np.subtract(block, mean, out=space[: len(block)])
        if scale is not None:
            block = np.divide(block, scale, out=space[: len(block)])
        yield rows, block
