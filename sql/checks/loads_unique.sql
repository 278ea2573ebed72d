-- loads_unique: plates that a feature set holds more than once.
SELECT
    loads.feature_set,
    loads.source,
    loads.plate,
    count(*) AS times
FROM main.plate_loads AS loads
GROUP BY loads.feature_set, loads.source, loads.plate
HAVING count(*) > 1;
