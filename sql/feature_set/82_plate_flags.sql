-- plate_flags: what is wrong with the plates that a feature set holds.
-- Grain: one row per (source, batch, plate, flag)
-- Reads: plate_flags, quality_limits, feature_set.wells, feature_set.well_flags
-- Columns: affected in wells or treatments, NULL where the flag is the plate's
--   'wells flagged': more of its wells with a profile than the limit flagged_wells (a share) allows
CREATE OR REPLACE VIEW feature_set.plate_flags AS
WITH counted AS (
    SELECT
        wells.source,
        wells.batch,
        wells.plate,
        count(*) FILTER (WHERE NOT wells.has_profile AND wells.has_layout) AS without_data,
        count(*) FILTER (WHERE wells.has_profile AND NOT wells.has_layout) AS without_layout,
        count(*) FILTER (WHERE wells.has_profile) AS with_profile,
        count(*) FILTER (WHERE wells.has_profile AND wells.is_flagged) AS flagged
    FROM feature_set.well_flags AS wells
    GROUP BY wells.source, wells.batch, wells.plate
)

SELECT
    shared.source,
    shared.batch,
    shared.plate,
    shared.flag,
    shared.affected
FROM main.plate_flags AS shared
WHERE
    shared.feature_sets IS NULL
    AND (shared.source, shared.batch, shared.plate) IN (
        SELECT (wells.source, wells.batch, wells.plate) FROM feature_set.wells AS wells
    )
UNION ALL
SELECT
    counted.source,
    counted.batch,
    counted.plate,
    'wells without data' AS flag,
    counted.without_data AS affected
FROM counted
WHERE counted.without_data > 0
UNION ALL
SELECT
    counted.source,
    counted.batch,
    counted.plate,
    'wells without layout' AS flag,
    counted.without_layout AS affected
FROM counted
WHERE counted.without_layout > 0
UNION ALL
SELECT
    counted.source,
    counted.batch,
    counted.plate,
    'wells flagged' AS flag,
    counted.flagged AS affected
FROM counted
INNER JOIN main.quality_limits AS limits
    ON limits.measure = 'flagged_wells' AND counted.flagged > limits.upper * counted.with_profile;
