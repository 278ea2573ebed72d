"""Proof of the search: brute force in NumPy, on real screens and on 50,000 vectors with ties, for every filter.

The oracle compares every row in double and sorts all of them; it shares no code with the search. Rows and similarities
must be equal, not near.
"""

import functools
from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from warehouse import profiles
from warehouse.correct import correct
from warehouse.evaluation import evaluate
from warehouse.importers import import_profiles
from warehouse.lake import Lake
from warehouse.layouts import put_annotations
from warehouse.nearest import Filters, Searcher, build
from warehouse.runs import Run
from warehouse.screens import read_annotations, read_layout
from warehouse.screens.model import ANNOTATIONS_SCHEMA
from warehouse.search import Index, faiss_build, structures
from warehouse.search.gpu import FlatOnGpu

FILTERS = ("not_same_compound", "not_same_batch", "not_same_plate", "not_same_position", "where")
COMBINATIONS = list(product([False, True], repeat=len(FILTERS)))


def named(combination):
    return "+".join(name for name, is_on in zip(FILTERS, combination, strict=True) if is_on) or "none"


def brute_force(unit, query):
    """Cosine of a query with every row, in double, rounded to single at the end as an answer is."""
    exact = np.clip((unit.astype(np.float64) * query.astype(np.float64)).sum(axis=1), -1, 1)
    return exact.astype(np.float32)


def scaled(vectors):
    exact = vectors.astype(np.float64)
    return (exact / np.sqrt((exact * exact).sum(axis=1, keepdims=True))).astype(np.float32)


# --- 50,000 vectors with ties and duplicates


N, D, ASKED = 50_000, 32, 40


class Screen:
    """Vectors with ties, what filters go by, and the whole ranking of each of some queries by brute force."""

    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        different = rng.normal(size=(n * 3 // 5, D))
        # Copies, some of them twice or four times as long, of few rows hundreds; and directions that repeat by chance.
        copies = different[rng.zipf(1.4, n // 4) % len(different)] * rng.choice([1, 2, 4], (n // 4, 1))
        coarse = np.zeros((n - len(different) - len(copies), D))
        coarse[:, :6] = rng.integers(-1, 2, (len(coarse), 6))
        coarse[~coarse.any(axis=1), 0] = 1
        order = rng.permutation(n)
        self.vectors = np.concatenate([different, copies, coarse])[order].astype(np.float32)
        names = [f"t{i}" for i in rng.permutation(n)]
        self.keys = pl.DataFrame({"source": rng.choice(["s10", "s9", "é"], n), "name": names})
        by_keys = sorted(range(n), key=self.keys.rows().__getitem__)
        place = np.empty(n, np.int64)
        place[by_keys] = np.arange(n)

        self.compound = rng.integers(0, n // 5, n)
        self.batches = rng.integers(0, 15, (n, 2))  # one or two
        self.plate, self.position = rng.integers(0, 150, n), rng.integers(0, 384, n)
        self._of_batch = [np.flatnonzero((self.batches == batch).any(axis=1)) for batch in range(15)]
        self._of_plate = [np.flatnonzero(self.plate == plate) for plate in range(150)]
        self._of_position = [np.flatnonzero(self.position == position) for position in range(384)]

        self.asked = rng.choice(n, ASKED, replace=False)
        self.asked[:20] = rng.choice(
            order.argsort()[len(different) :], 20, replace=False
        )  # of those with equals
        unit = scaled(self.vectors)
        self.similarity = np.stack([brute_force(unit, unit[row]) for row in self.asked])
        self.ranking = np.stack([np.lexsort((place, -near)) for near in self.similarity])
        self.rank = np.argsort(self.ranking, axis=1)

    @functools.cache  # noqa: B019 (two screens, as long as the module)
    def structure(self, kind):
        return structures.build(scaled(self.vectors), kind, 0.9)

    def left_out(self, query, combination):
        """The arrays of rows that a query must not have, shared between queries where rows of a batch or plate are."""
        row = int(self.asked[query])
        compound, batch, plate, position, _ = combination
        arrays = [np.array([row])]
        if compound:
            arrays.append(np.flatnonzero(self.compound == self.compound[row]))
        if batch:
            arrays += [self._of_batch[number] for number in np.unique(self.batches[row])]
        if plate:
            arrays.append(self._of_plate[self.plate[row]])
        if position:
            arrays.append(self._of_position[self.position[row]])
        return arrays

    def allowed(self, query, combination, where):
        """The same as a mask, row by row and not by the arrays."""
        row = int(self.asked[query])
        compound, batch, plate, position, _ = combination
        mask = np.arange(len(self.plate)) != row
        if compound:
            mask &= self.compound != self.compound[row]
        if batch:
            first, second = self.batches[row]
            mask &= ((self.batches != first) & (self.batches != second)).all(axis=1)
        if plate:
            mask &= self.plate != self.plate[row]
        if position:
            mask &= self.position != self.position[row]
        return mask if where is None else mask & where

    def nearest(self, query, k, mask):
        """The k nearest of the mask: similarities and rows, filled up with NaN and -1."""
        rows = self.ranking[query]
        rows = rows[mask[rows]][:k]
        near = self.similarity[query][rows]
        short = k - len(rows)
        return np.pad(near, (0, short), constant_values=np.nan), np.pad(rows, (0, short), constant_values=-1)


@pytest.fixture(scope="module")
def screen():
    return Screen(N, seed=50)


@pytest.fixture(scope="module")
def flat(screen):
    return Index.of(screen.vectors, screen.keys)


def check(screen, index, queries, k, combination, where):
    """Search, and compare rows and similarities with brute force."""
    excluded = [screen.left_out(query, combination) for query in queries]
    found = index.search(screen.vectors[screen.asked[queries]], k, where, excluded)
    for i, query in enumerate(queries):
        near, rows = screen.nearest(query, k, screen.allowed(query, combination, where))
        assert found.rows[i].tolist() == rows.tolist()
        np.testing.assert_array_equal(found.similarities[i], near)


def share(seed, size):
    """A predicate that leaves a share of the rows."""
    return np.random.default_rng(seed).random(N) < size


@pytest.mark.parametrize("combination", COMBINATIONS, ids=named)
def test_every_combination_of_filters_equals_brute_force(screen, flat, combination):
    where = share(1, 0.5) if combination[-1] else None
    check(screen, flat, range(0, ASKED, 2), 20, combination, where)  # 20 queries: by blocks
    check(screen, flat, [3], 20, combination, where)  # one query


@settings(max_examples=20, deadline=None)
@given(
    combination=st.sampled_from(COMBINATIONS),
    size=st.sampled_from([0, 1 / N, 0.01, 0.09, 0.11, 0.5, 0.999]),
    seed=st.integers(0, 2**31),
    k=st.sampled_from([1, 2, 20, 300]),
    count=st.sampled_from([1, 3, 15, 16, 24]),
)
def test_filters_of_any_size_equal_brute_force(screen, flat, combination, size, seed, k, count):
    queries = np.random.default_rng(seed).choice(ASKED, count, replace=False).tolist()
    check(screen, flat, queries, k, combination, share(seed, size) if combination[-1] else None)


@pytest.mark.parametrize("near", [30, 500, 20_000])
def test_the_nearest_may_all_be_left_out(screen, flat, near):
    """What comes after them comes back, however many they are; a filter after the ranking would return nothing."""
    queries = list(range(0, ASKED, 2))
    excluded = [[screen.ranking[query][:near]] for query in queries]
    for asked in (queries, queries[:1]):
        found = flat.search(screen.vectors[screen.asked[asked]], 20, None, excluded[: len(asked)])
        expected = [screen.ranking[query][near : near + 20].tolist() for query in asked]
        assert found.rows.tolist() == expected


@pytest.mark.parametrize("together", [1, 5, 20, ASKED])
def test_queries_that_leave_out_the_same_rows_equal_brute_force(screen, flat, together):
    """Groups of any size share an array of 1,200 rows, the nearest of all their queries among them."""
    excluded, masks = [], []
    for first in range(0, ASKED, together):
        queries = range(first, min(first + together, ASKED))
        rows = np.unique(np.concatenate([screen.ranking[query][: 1200 // together] for query in queries]))
        rows = np.union1d(rows, np.arange(1200))
        mask = np.ones(N, dtype=bool)
        mask[rows] = False
        excluded += [[rows]] * len(queries)
        masks += [mask] * len(queries)
    found = flat.search(screen.vectors[screen.asked], 20, None, excluded)
    for query in range(ASKED):
        near, rows = screen.nearest(query, 20, masks[query])
        assert found.rows[query].tolist() == rows.tolist()
        np.testing.assert_array_equal(found.similarities[query], near)


# --- other structures, and devices whose search takes no filter


FEW = 8_000


@pytest.fixture(scope="module")
def small():
    return Screen(FEW, seed=8)


def half_precision(dim):
    """A flat index as GPUs hold it: halves, and no selector is ever given to it."""
    faiss = faiss_build.load()
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def flat_without_selectors(screen):
    index = Index.of(screen.vectors, screen.keys)
    index._flat = FlatOnGpu(scaled(screen.vectors), halves=half_precision)
    return index


def structured(screen, kind):
    return Index(scaled(screen.vectors), screen.keys, structure=screen.structure(kind))


def structure_without_selectors(screen, kind):
    built = screen.structure(kind)
    built._index.nprobe = built.settings.effort
    structure = structures.Structure(built._index, built.settings, built.width)
    structure.device = "gpu"
    index = structured(screen, kind)
    index.structure = structure
    return index


def on_a_gpu(screen, kind):
    if faiss_build.gpus() == 0:
        pytest.skip(
            "no GPU, or FAISS's CPU build: install faiss-gpu on a machine with an NVIDIA GPU to run this"
        )
    unit = scaled(screen.vectors)
    structure = None if kind == "flat" else screen.structure(kind)
    return Index(unit, screen.keys, structure=structure, device="gpu")


MAKERS = {
    "flat": lambda screen: Index.of(screen.vectors, screen.keys),
    "hnsw": lambda screen: structured(screen, "hnsw"),
    "ivf": lambda screen: structured(screen, "ivf"),
    "ivf_pq": lambda screen: structured(screen, "ivf_pq"),
    "flat without selectors": flat_without_selectors,
    "ivf without selectors": lambda screen: structure_without_selectors(screen, "ivf"),
    "ivf_pq without selectors": lambda screen: structure_without_selectors(screen, "ivf_pq"),
    "flat on a GPU": lambda screen: on_a_gpu(screen, "flat"),
    "ivf on a GPU": lambda screen: on_a_gpu(screen, "ivf"),
    "ivf_pq on a GPU": lambda screen: on_a_gpu(screen, "ivf_pq"),
}


@pytest.fixture(scope="module", params=MAKERS)
def backend(request, small):
    return MAKERS[request.param](small)


def check_filled(screen, index, queries, k, excluded, where, masks):
    """Nothing that was left out comes back, k rows do where there are k, and similarities are those of the rows."""
    found = index.search(screen.vectors[screen.asked[queries]], k, where, excluded)
    recalled = []
    for i, query in enumerate(queries):
        mask = masks[i]
        rows = found.rows[i][found.rows[i] >= 0]
        assert mask[rows].all()
        assert len(np.unique(rows)) == len(rows) == min(k, mask.sum())
        assert (found.rows[i][len(rows) :] == -1).all()
        np.testing.assert_array_equal(found.similarities[i][: len(rows)], screen.similarity[query][rows])
        assert (np.diff(screen.rank[query][rows]) > 0).all()
        best = screen.nearest(query, k, mask)[0][: len(rows)]
        recalled.append(np.mean(screen.similarity[query][rows] >= best.min(initial=2)) if len(rows) else 1)
    return float(np.mean(recalled))


@pytest.mark.parametrize("size", [0, 0.002, 0.3, 0.999])
def test_no_excluded_row_comes_back_and_k_is_filled(small, backend, size):
    where = np.random.default_rng(5).random(FEW) < size
    for queries in (list(range(ASKED)), [0]):
        for combination in ((True, False, True, True, True), (True,) * 5):
            excluded = [small.left_out(query, combination) for query in queries]
            given = where if combination[-1] else None
            masks = [small.allowed(query, combination, given) for query in queries]
            check_filled(small, backend, queries, 20, excluded, given, masks)


@pytest.mark.parametrize("near", [100, 4_000, FEW - 5])
def test_k_is_filled_though_the_nearest_are_left_out(small, backend, near):
    """Each query leaves out those rows that it would have found first."""
    for queries in (list(range(ASKED)), [0]):
        excluded = [[small.ranking[query][:near]] for query in queries]
        masks = [~np.isin(np.arange(FEW), excluded[i][0]) for i in range(len(queries))]
        check_filled(small, backend, queries, 20, excluded, None, masks)


def test_recall_of_an_index_is_the_one_it_says(small, backend):
    masks = [small.allowed(query, (False,) * 5, None) for query in range(ASKED)]
    excluded = [small.left_out(query, (False,) * 5) for query in range(ASKED)]
    recall = check_filled(small, backend, list(range(ASKED)), 20, excluded, None, masks)
    said = 1 if backend.structure is None else backend.structure.settings.recall
    assert said >= 0.9
    assert recall > said - 0.05  # 40 queries against 200


@pytest.mark.parametrize("maker", [flat_without_selectors, lambda screen: on_a_gpu(screen, "flat")])
def test_half_precision_finds_the_exact_answer(small, maker):
    index = maker(small)
    for combination in COMBINATIONS[::5]:
        where = np.random.default_rng(5).random(FEW) < 0.5 if combination[-1] else None
        check(small, index, list(range(ASKED)), 20, combination, where)


# --- real screens in a lake


LEVELS = ("treatment", "compound", "consensus", "well")
IDS = {"compound": ["compound"], "well": ["source", "batch", "plate", "well"]}
#: A predicate, and what it says in Python of a row's metadata, with moa.
WHERE = {
    "treatment": ("well_count > 2 AND moa IS NOT NULL", lambda row: row["well_count"] > 2 and row["moa"]),
    "compound": (
        "len(moa) = 1 AND control_type = 'none'",
        lambda row: row["moa"] and row["control_type"] == "none",
    ),
    "consensus": (
        "treatment NOT LIKE '%e%' OR concentration < 1",
        lambda row: "e" not in row["treatment"] or (row["concentration"] or 9) < 1,
    ),
    "well": (
        "well[1] IN ('B', 'D', 'F') AND moa IS NOT NULL",
        lambda row: row["well"][0] in "BDF" and row["moa"],
    ),
}


@pytest.fixture(scope="module")
def lake(data_dir, tmp_path_factory):
    """BBBC021 by Ljosa et al., standardized by plate, and two plates of the MoA screen."""
    with Lake.create(tmp_path_factory.mktemp("proof") / "lake") as made:
        folder = data_dir / "bbbc021"
        import_profiles(
            made,
            [folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz"],
            "ljosa",
            layout=read_layout(folder / "BBBC021_v1_image.csv.gz"),
            annotations=read_annotations(folder / "BBBC021_v1_moa.csv"),
        )
        compounds = made.frame(
            "SELECT DISTINCT compound FROM main.wells WHERE compound <> 'DMSO' ORDER BY ALL"
        )
        half = [(name, None, None, "pathway", f"of {name[0]}") for name in compounds["compound"][::2]]
        put_annotations(made, Run("proof", {}), pl.DataFrame(half, schema=ANNOTATIONS_SCHEMA, orient="row"))
        correct(made, "ljosa", "standardize")
        folder = data_dir / "moa_screen"
        import_profiles(
            made,
            [folder / "Batch1_normalized_feature_select_negcon_batch.csv.gz"],
            "moa_screen",
            layout=read_layout(folder / "platemaps/2023_05_15_Batch1"),
            annotations=read_annotations(folder / "platemaps"),
        )
        correct(made, "moa_screen", "drop_missing(cutoff=0)")
        for level in ("treatment", "well"):  # the others are searched without an index
            build(made, "ljosa", recipe="standardize", level=level)
        yield made


SETS = {"ljosa": "standardize", "moa_screen": "drop_missing(cutoff=0)"}


class Level:
    """The rows of a level by hand: unit vectors, and what the wells of each row have."""

    def __init__(self, lake, feature_set, level):
        recipe = SETS[feature_set]
        table = profiles.read(lake, feature_set, recipe=recipe, level=level)
        wells = profiles.read(lake, feature_set, recipe=recipe, level="well").rows
        moa = dict(lake.frame(f"SELECT treatment, moa FROM {feature_set}.treatments").rows())
        ids = IDS.get(level, ["treatment"])
        self.names = ["/".join(map(str, row)) for row in table.rows.select(ids).rows()]
        self.unit = scaled(table.matrix)
        self.rows = table.rows.to_dicts()
        if level == "well":
            for row in self.rows:
                row["moa"] = moa[row["treatment"]]
        self.has = [tuple(set() for _ in range(4)) for _ in self.names]
        place = {name: number for number, name in enumerate(self.names)}
        for well in wells.to_dicts():
            batch = f"{well['source']}/{well['batch']}"
            values = (well["compound"], batch, f"{batch}/{well['plate']}", well["well"])
            for own, value in zip(self.has[place["/".join(well[name] for name in ids)]], values, strict=True):
                own.add(value)

    def nearest(self, row, k, predicate):
        """A function of a combination of filters to the names and similarities of the k nearest of a row."""
        near = brute_force(self.unit, self.unit[row])
        ranked = sorted(range(len(near)), key=lambda other: (-near[other], self.names[other].split("/")))
        mine = self.has[row]
        left_out = [[bool(a & b) for a, b in zip(mine, self.has[other], strict=True)] for other in ranked]
        left_out = [
            [*one, not predicate(self.rows[other])] for one, other in zip(left_out, ranked, strict=True)
        ]

        def answer(combination):
            allowed = [
                other
                for other, out in zip(ranked, left_out, strict=True)
                if other != row and not any(a and b for a, b in zip(out, combination, strict=True))
            ]
            return [(self.names[other], float(near[other])) for other in allowed[:k]]

        return answer


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("feature_set", SETS)
def test_a_real_screen_equals_brute_force_for_every_combination_of_filters(lake, feature_set, level):
    searcher = Searcher(lake, feature_set, SETS[feature_set], level)
    by_hand = Level(lake, feature_set, level)
    where, predicate = WHERE[level]
    step = {"compound": 4, "well": 64}.get(level, 9)
    queries = [searcher.query(name) for name in by_hand.names[::step]]
    expected = [by_hand.nearest(row, 20, predicate) for row in range(0, len(by_hand.names), step)]
    ids = IDS.get(level, ["treatment"])
    seen = 0
    for number, combination in enumerate(COMBINATIONS):
        filters = Filters(*combination[:4], where if combination[-1] else None)
        found = searcher.nearest_many(queries, 20, filters)
        names = found.select(pl.concat_str(ids, separator="/")).to_series()
        answers = {query.name: [] for query in queries}
        for query, name, near in zip(found["query"], names, found["similarity"], strict=True):
            answers[query].append((name, near))
        assert list(answers.values()) == [answer(combination) for answer in expected], combination
        seen += len(found)
        if number % 16 == 15:
            query = queries[number % len(queries)]
            one = searcher.nearest(query, 20, filters).neighbours.select("rank", *ids, "similarity")
            assert one.equals(found.filter(pl.col("query") == query.name).select(one.columns))
    assert seen > 100 * len(queries)


def test_the_nearest_neighbour_is_that_of_nsc_and_nsb(lake, capsys):
    """1-NN by evaluation and by search with the same exclusions: each query has the same neighbour."""
    by_metric = evaluate(lake, ["ljosa"], ["nsc", "nsb"], recipe="standardize")
    names = profiles.read(lake, "ljosa", recipe="standardize").names()
    searcher = Searcher(lake, "ljosa", "standardize")
    labels = dict(lake.frame("SELECT treatment, moa FROM ljosa.treatments").rows())
    several_weeks = "NOT list_has_any(moa, ['Cholesterol-lowering', 'Kinase inhibitors'])"
    chosen = {
        "nsc": Filters(not_same_compound=True, where="moa IS NOT NULL"),
        "nsb": Filters(not_same_compound=True, not_same_batch=True, where=several_weeks),
    }
    for evaluation, expected in zip(by_metric, [(85, 103), (67, 92)], strict=True):
        queries = evaluation.score.per_query
        asked = [searcher.query(names[row]) for row in queries["row"]]
        found = searcher.nearest_many(asked, 1, chosen[evaluation.metric])
        assert found["query"].to_list() == [names[row] for row in queries["row"]]
        assert found["treatment"].to_list() == [names[row] for row in queries["neighbour"]]
        np.testing.assert_allclose(found["similarity"], queries["similarity"], rtol=0, atol=1e-6)
        right = sum(
            bool(set(labels[a]) & set(labels[b])) for a, b in found.select("query", "treatment").rows()
        )
        assert (right, len(found)) == (evaluation.score.correct, evaluation.score.n) == expected
        with capsys.disabled():
            print(f"\n{evaluation.metric}: {right} of {len(found)} by search for k = 1, as by evaluation")


def naive_p(similarity, null, opposite=False):
    return (1 + sum(x <= similarity if opposite else x >= similarity for x in null)) / (1 + len(null))


def control_profiles(lake, wells):
    """Means of so many DMSO wells each, drawn in the order of their keys' MD5, none of them twice."""
    table = profiles.read(
        lake, "ljosa", recipe="standardize", level="well", where="control_type = 'negative'"
    )
    keys = table.rows.select(pl.concat_str(IDS["well"], separator="/").alias("key"))
    query = "SELECT key FROM keys ORDER BY md5_number_lower(key), key"
    lake.connection.register("keys", keys)
    order = [keys["key"].to_list().index(key) for (key,) in lake.connection.execute(query).fetchall()]
    lake.connection.unregister("keys")
    groups = [order[i : i + wells] for i in range(0, len(order) - wells + 1, wells)]
    return scaled(np.stack([table.matrix[rows].astype(np.float64).mean(axis=0) for rows in groups]))


@pytest.mark.parametrize("opposite", [False, True])
def test_what_an_answer_says_beside_its_rows(lake, opposite):
    """Similar and opposite: order, p-values against profiles of controls, enrichment; all counted one by one."""
    searcher = Searcher(lake, "ljosa", "standardize")
    by_hand = Level(lake, "ljosa", "treatment")
    wells = sorted(row["well_count"] for row in by_hand.rows if row["control_type"] == "none")
    null_of = control_profiles(lake, wells[len(wells) // 2])
    query = by_hand.names.index("taxol@0.3uM")
    near = brute_force(by_hand.unit, by_hand.unit[query])
    allowed = [
        row for row in range(len(near)) if row != query and not by_hand.has[query][0] & by_hand.has[row][0]
    ]
    ranked = sorted(allowed, key=lambda row: (near[row] if opposite else -near[row], by_hand.names[row]))[:80]
    answer = searcher.nearest(
        searcher.query("taxol@0.3uM"), 80, Filters(not_same_compound=True), opposite=opposite
    )
    assert answer.neighbours["treatment"].to_list() == [by_hand.names[row] for row in ranked]
    assert answer.neighbours["similarity"].to_list() == near[ranked].tolist()
    assert answer.allowed == len(allowed)
    null = brute_force(null_of, by_hand.unit[query])
    expected = [naive_p(near[row], null, opposite) for row in ranked]
    assert answer.neighbours["p_value"].to_list() == expected
    assert len({*expected}) > 1

    moa = [row["moa"] or [] for row in by_hand.rows]
    found = answer.enrichment.filter(pl.col("kind") == "moa")
    assert set(found["label"]) == {label for row in ranked for label in moa[row]}
    for label, *counts, p in found.select(
        "label", "in_list", "of_list", "in_allowed", "of_allowed", "p_value"
    ).rows():
        has, others = [row for row in allowed if label in moa[row]], [row for row in allowed if moa[row]]
        listed = [row for row in ranked if moa[row]]
        both = len(set(has) & set(listed))
        assert counts == [both, len(listed), len(has), len(others)]
        table = [[both, len(listed) - both], [len(has) - both, len(others) - len(has) - len(listed) + both]]
        assert p == pytest.approx(fisher_exact(table, alternative="greater").pvalue, rel=1e-10)


def test_pairs_and_the_graph_equal_a_loop_over_all_pairs(lake):
    searcher = Searcher(lake, "ljosa", "standardize")
    by_hand = Level(lake, "ljosa", "treatment")
    n = len(by_hand.names)
    near = np.stack([brute_force(by_hand.unit, query) for query in by_hand.unit])
    batches = [own[1] for own in by_hand.has]
    apart = {(a, b) for a in range(n) for b in range(n) if a != b and not batches[a] & batches[b]}
    pairs = sorted(
        ((a, b) for a, b in apart if by_hand.names[a] < by_hand.names[b] and near[a, b] >= np.float32(0.7)),
        key=lambda pair: (-near[pair], by_hand.names[pair[0]], by_hand.names[pair[1]]),
    )
    found = searcher.pairs(0.7, Filters(not_same_batch=True))
    expected = [(by_hand.names[a], by_hand.names[b], float(near[a, b])) for a, b in pairs]
    assert found.select("treatment", "neighbour_treatment", "similarity").rows() == expected
    assert len(expected) > 100

    edges = []
    for a in range(n):
        others = sorted(
            (b for b in range(n) if (a, b) in apart), key=lambda b: (-near[a, b], by_hand.names[b])
        )
        for rank, b in enumerate(others[:5], start=1):
            edges.append((by_hand.names[a], rank, float(near[a, b]), by_hand.names[b]))
    found = searcher.graph(5, Filters(not_same_batch=True))
    assert found.select("treatment", "rank", "similarity", "neighbour_treatment").rows() == edges


def test_novelty_equals_a_loop_over_all_pairs(lake):
    """Every second compound has a pathway; how far are the others from those, as compared with those themselves?"""
    searcher = Searcher(lake, "ljosa", "standardize")
    by_hand = Level(lake, "ljosa", "treatment")
    compound = [row["compound"] for row in by_hand.rows]
    known = [row for row in range(len(compound)) if by_hand.rows[row]["pathway"]]

    def nearest(row):
        near = brute_force(by_hand.unit, by_hand.unit[row])
        others = [other for other in known if compound[other] != compound[row]]
        best = min(others, key=lambda other: (-near[other], by_hand.names[other]))
        return float(near[best]), by_hand.names[best]

    null = [nearest(row)[0] for row in known]
    asked = [row for row in range(len(compound)) if row not in known and compound[row] != "DMSO"]
    expected = []
    for row in asked:
        similarity, neighbour = nearest(row)
        expected.append((by_hand.names[row], neighbour, similarity, naive_p(similarity, null, opposite=True)))
    expected.sort(key=lambda one: (one[2], one[0]))
    found = searcher.novelty("pathway")
    columns = ("treatment", "neighbour_treatment", "similarity", "p_value")
    assert found.select(columns).rows() == expected
    ordered = sorted(p for *_, p in expected)
    scaled_up = [p * len(asked) / rank for rank, p in enumerate(ordered, start=1)]
    q = [min(1, *scaled_up[ordered.index(p) :]) for *_, p in expected]
    np.testing.assert_allclose(found["q_value"], q, rtol=1e-12)
    assert len(asked) > 30
    assert len(known) > 30
