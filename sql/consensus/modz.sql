-- consensus: mean of the wells of each treatment, weighted by how well each agrees with the others (MODZ).
-- Grain: one row per (treatment)
-- Reads: feature_set.treatments, feature_set.well_profiles
-- Columns: as in treatments; embedding FLOAT[dim]
--   A well's weight is the mean of its Spearman correlations across features with the other wells, negative
--   ones taken as 0; at least 0.01; divided by the sum of all and rounded to 4 places, as pycytominer 1.7.1
--   does. One well stays as it is. Weights are not scaled after they are rounded, as there.
--   Ranks are those among a well's own features, and a pair of wells is compared over features both have. An
--   element that some wells lack is of the others' weights; pycytominer takes it as zero.
--   Of more than 512 wells those 512 count whose key has the smallest MD5: the number of pairs grows with the
--   square, and of 10,000 wells the rounded weights are none.
CREATE OR REPLACE VIEW feature_set.consensus AS
WITH drawn AS (
    SELECT
        wells.treatment,
        arg_min(
            wells.embedding,
            md5_number_lower(concat_ws('/', wells.source, wells.batch, wells.plate, wells.well)),
            512
        ) AS embeddings
    FROM feature_set.well_profiles AS wells
    WHERE wells.treatment IS NOT NULL
    GROUP BY wells.treatment
),

-- The rank of an element among equal ones is the mean of their places. Sorted together with its position it
-- has the first of these places for one order of positions, and the last for the other.
ordered AS (
    SELECT
        drawn.treatment,
        drawn.embeddings,
        [[x IS NOT NULL FOR x IN e]::DOUBLE[] FOR e IN drawn.embeddings] AS known,
        [
            list_grade_up(list_grade_up([
                CASE WHEN e[i] IS NOT NULL THEN row(e[i], i) END FOR i IN range(1, len(e) + 1)
            ], 'ASC', 'NULLS LAST'))
            FOR e IN drawn.embeddings
        ] AS forwards,
        [
            list_grade_up(list_grade_up([
                CASE WHEN e[i] IS NOT NULL THEN row(e[i], -i) END FOR i IN range(1, len(e) + 1)
            ], 'ASC', 'NULLS LAST'))
            FOR e IN drawn.embeddings
        ] AS backwards
    FROM drawn
),

ranked AS (
    SELECT
        ordered.treatment,
        ordered.embeddings,
        ordered.known,
        [
            [
                ordered.known[w][i] * (ordered.forwards[w][i] + ordered.backwards[w][i]) / 2
                FOR i IN range(1, len(ordered.known[w]) + 1)
            ]
            FOR w IN range(1, len(ordered.known) + 1)
        ] AS ranks
    FROM ordered
),

squared AS (
    SELECT
        ranked.*,
        [[r * r FOR r IN ranks] FOR ranks IN ranked.ranks] AS squares
    FROM ranked
),

-- Sums over the features that both wells have, for Pearson's correlation of the ranks.
paired AS (
    SELECT
        squared.treatment,
        squared.embeddings,
        [
            [
                {
                    'n': list_dot_product(squared.known[a], squared.known[b]),
                    'x': list_dot_product(squared.ranks[a], squared.known[b]),
                    'y': list_dot_product(squared.known[a], squared.ranks[b]),
                    'xx': list_dot_product(squared.squares[a], squared.known[b]),
                    'yy': list_dot_product(squared.known[a], squared.squares[b]),
                    'xy': list_dot_product(squared.ranks[a], squared.ranks[b])
                }
                FOR b IN range(1, len(squared.ranks) + 1) IF b <> a
            ]
            FOR a IN range(1, len(squared.ranks) + 1)
        ] AS sums
    FROM squared
),

correlated AS (
    SELECT
        paired.treatment,
        paired.embeddings,
        [
            list_avg([
                CASE
                    WHEN s.n * s.xx > s.x * s.x AND s.n * s.yy > s.y * s.y
                        THEN greatest(0, (s.n * s.xy - s.x * s.y)
                        / sqrt(s.n * s.xx - s.x * s.x) / sqrt(s.n * s.yy - s.y * s.y))
                END
                FOR s IN of_well
            ])
            FOR of_well IN paired.sums
        ] AS agreements
    FROM paired
),

weighed AS (
    SELECT
        correlated.treatment,
        correlated.embeddings,
        [CASE WHEN a < 0.01 THEN 0.01 ELSE a END FOR a IN correlated.agreements] AS weights
    FROM correlated
),

-- Where no pair of wells can be compared, all count the same.
rounded AS (
    SELECT
        weighed.treatment,
        weighed.embeddings,
        CASE
            WHEN len(weighed.embeddings) = 1 THEN [1.0]
            WHEN list_count(weighed.weights) = 0
                THEN [round_even(1 / len(weighed.weights), 4) FOR w IN weighed.weights]
            ELSE [round_even(w / list_sum(weighed.weights), 4) FOR w IN weighed.weights]
        END AS weights
    FROM weighed
),

profiles AS (
    SELECT
        rounded.treatment,
        [
            list_sum([
                rounded.embeddings[w][i]::DOUBLE * rounded.weights[w]
                FOR w IN range(1, len(rounded.weights) + 1)
            ]) * list_sum(rounded.weights) / nullif(list_sum([
                rounded.weights[w] FOR w IN range(1, len(rounded.weights) + 1)
                IF rounded.embeddings[w][i] IS NOT NULL
            ]), 0)
            FOR i IN range(1, len(rounded.embeddings[1]) + 1)
        ]::FLOAT[] AS embedding
    FROM rounded
)

SELECT
    treatments.* EXCLUDE (embedding),
    profiles.embedding
FROM feature_set.treatments AS treatments
INNER JOIN profiles ON treatments.treatment = profiles.treatment;
