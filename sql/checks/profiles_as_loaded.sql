-- profiles_as_loaded: plates of which not every row of the imported table is in, or rejected.
-- The variable feature_set holds the name of the feature set at hand.
WITH loads AS (
    SELECT
        plate_loads.source,
        plate_loads.batch,
        plate_loads.plate,
        plate_loads.profiles_seen,
        plate_loads.profiles_rejected
    FROM main.plate_loads
    WHERE plate_loads.feature_set = getvariable('feature_set')
),

profiles AS (
    SELECT
        wells.source,
        wells.batch,
        wells.plate,
        'well' AS entry_level
    FROM feature_set.wells AS wells
    UNION ALL
    SELECT
        fields.source,
        fields.batch,
        fields.plate,
        'field' AS entry_level
    FROM feature_set.fields AS fields
),

there AS (
    SELECT
        profiles.source,
        profiles.batch,
        profiles.plate,
        count(*) AS profiles_there
    FROM profiles
    INNER JOIN main.feature_sets AS sets
        ON profiles.entry_level = sets.entry_level AND sets.feature_set = getvariable('feature_set')
    GROUP BY profiles.source, profiles.batch, profiles.plate
)

SELECT
    source,
    batch,
    plate,
    loads.profiles_seen,
    loads.profiles_rejected,
    coalesce(there.profiles_there, 0) AS profiles_there
FROM loads
LEFT JOIN there USING (source, batch, plate)
WHERE
    loads.profiles_seen > 0
    AND loads.profiles_seen <> coalesce(there.profiles_there, 0) + loads.profiles_rejected;
