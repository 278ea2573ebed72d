-- wells_as_loaded: plates whose profiles are not as many as their load counted, or that have no load.
-- The variable feature_set holds the name of the feature set at hand.
SELECT
    coalesce(loads.source, wells.source) AS source,
    coalesce(loads.batch, wells.batch) AS batch,
    coalesce(loads.plate, wells.plate) AS plate,
    loads.wells_in,
    count(wells.well) AS wells_there
FROM (
    SELECT * FROM main.plate_loads
    WHERE plate_loads.feature_set = getvariable('feature_set')
) AS loads
FULL JOIN feature_set.wells AS wells
    ON loads.source = wells.source AND loads.batch = wells.batch AND loads.plate = wells.plate
GROUP BY ALL
HAVING loads.wells_in IS NULL OR count(wells.well) <> loads.wells_in;
