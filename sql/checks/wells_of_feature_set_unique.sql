-- wells_of_feature_set_unique: wells of which a feature set holds more than one profile.
SELECT
    wells.source,
    wells.plate,
    wells.well,
    count(*) AS times
FROM feature_set.wells AS wells
GROUP BY wells.source, wells.plate, wells.well
HAVING count(*) > 1;
