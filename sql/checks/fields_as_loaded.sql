-- fields_as_loaded: plates whose field profiles are not as many as their wells count, or that have no load.
-- The variable feature_set holds the name of the feature set at hand.
WITH loads AS (
    SELECT
        plate_loads.source,
        plate_loads.batch,
        plate_loads.plate
    FROM main.plate_loads
    WHERE plate_loads.feature_set = getvariable('feature_set')
),

fields AS (
    SELECT
        fields.source,
        fields.batch,
        fields.plate,
        count(*) AS fields_there
    FROM feature_set.fields AS fields
    GROUP BY fields.source, fields.batch, fields.plate
),

wells AS (
    SELECT
        wells.source,
        wells.batch,
        wells.plate,
        sum(wells.field_count)::BIGINT AS fields_of_wells
    FROM feature_set.wells AS wells
    GROUP BY wells.source, wells.batch, wells.plate
),

entry AS (
    SELECT feature_sets.entry_level
    FROM main.feature_sets
    WHERE feature_sets.feature_set = getvariable('feature_set')
)

SELECT
    source,
    batch,
    plate,
    coalesce(fields.fields_there, 0) AS fields_there,
    wells.fields_of_wells,
    loads.plate IS NOT NULL AS is_loaded
FROM loads
FULL JOIN fields USING (source, batch, plate)
LEFT JOIN wells USING (source, batch, plate)
CROSS JOIN entry
WHERE
    loads.plate IS NULL
    OR (entry.entry_level <> 'well' AND coalesce(fields.fields_there, 0) <> wells.fields_of_wells);
