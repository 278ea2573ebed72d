-- wells_as_loaded: plates whose profiles are not as many as their load counted.
-- The variable feature_set holds the name of the feature set at hand.
SELECT
    loads.plate,
    loads.wells_in,
    count(wells.well) AS wells_there
FROM main.plate_loads AS loads
LEFT JOIN feature_set.wells AS wells
    ON loads.source = wells.source AND loads.batch = wells.batch AND loads.plate = wells.plate
WHERE loads.feature_set = getvariable('feature_set')
GROUP BY loads.plate, loads.wells_in
HAVING count(wells.well) <> loads.wells_in;
