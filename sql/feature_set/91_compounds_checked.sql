-- compounds_checked: compounds, and how large a share of the wells no flag concerns.
-- Grain: one row per (compound)
-- Reads: feature_set.compounds, feature_set.well_profiles_passing
-- Columns: as in compounds; passing_share 0 to 1
--   In a view of its own: DuckDB does a join even where nothing of it is asked for, and this one reads the
--   quality of every field of the feature set.
CREATE OR REPLACE VIEW feature_set.compounds_checked AS
WITH passing AS (
    SELECT
        wells.compound,
        count(*) AS well_count
    FROM feature_set.well_profiles_passing AS wells
    GROUP BY wells.compound
)

SELECT
    compounds.* EXCLUDE (embedding),
    coalesce(passing.well_count, 0) / compounds.well_count AS passing_share,
    compounds.embedding
FROM feature_set.compounds AS compounds
LEFT JOIN passing ON compounds.compound = passing.compound;
