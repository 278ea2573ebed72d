"""The matrix that a correction works on: the same in memory and in a file, and recipes the same on either."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse import fitting, recipes, scratch
from warehouse.errors import RecipeError
from warehouse.scratch import Scratch

X = np.random.default_rng(0).normal(2, 3, (600, 30))
ROWS = pl.DataFrame(
    {
        "source": "s",
        "batch": np.repeat(["b1", "b2"], 300),
        "plate": np.repeat([f"p{i}" for i in range(6)], 100),
        "well": np.tile([f"A{i:02d}" for i in range(100)], 6),
        "control_type": np.tile(["negative", "none"], 300),
    }
)


@given(st.lists(st.integers(0, 599), max_size=60, unique=True), st.integers(0, 29), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_a_file_gives_what_memory_gives(rows, first, count):
    file, memory = Scratch(600, 30, in_memory=False), Scratch(600, 30)
    for one in (file, memory):
        one.write(0, X[:250])
        one.write(250, X[250:])
    chosen, columns = np.array(sorted(rows), dtype=np.intp), slice(first, first + count)
    np.testing.assert_array_equal(file.take(chosen, columns), X[chosen][:, columns])
    np.testing.assert_array_equal(memory.take(chosen, columns), X[chosen][:, columns])
    np.testing.assert_array_equal(file.read(10, 20), memory.read(10, 20))
    assert (file.is_in_memory, memory.is_in_memory) == (False, True)
    file.close()


@pytest.mark.parametrize(
    "text", ["mad_robustize", "standardize+sphering", "center(scope=all)+standardize(scope=batch,on=all)"]
)
def test_a_recipe_gives_the_same_in_blocks_on_a_file(text):
    recipe = recipes.parse(text)
    data = X.copy()
    data[ROWS["plate"].to_numpy() == "p3", 7] = 1.25  # constant there
    whole = fitting.fit_transform(recipe, data, ROWS)
    work = Scratch(600, 30, in_memory=False)
    work.write(0, data)
    # 64 values at once: blocks of two rows, and fits of one feature.
    state = fitting.run(recipe, work, ROWS, (), None, memory_mb=64 * 16 * 8 / (1 << 20))
    np.testing.assert_allclose(state.work.read(), whole.profiles, rtol=1e-12, atol=1e-12)
    assert not state.work.is_in_memory
    assert len(state.fits) == len(whole.fits)
    for made, expected in zip(state.fits, whole.fits, strict=True):
        assert made.arrays.keys() == expected.arrays.keys()
        for name, array in expected.arrays.items():
            np.testing.assert_allclose(made.arrays[name], array, rtol=1e-12, atol=1e-12)


def test_a_full_disk_is_told(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch.os, "pwrite", full)
    with pytest.raises(
        RecipeError, match=r"600 × 30 profiles being corrected .*No space left on device\): make room"
    ):
        Scratch(600, 30, in_memory=False).write(0, X)
