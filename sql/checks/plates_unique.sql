-- plates_unique: plates that are in more than once, or in two batches of one source.
SELECT
    plates.source,
    plates.plate,
    count(*) AS times
FROM main.plates
GROUP BY plates.source, plates.plate
HAVING count(*) > 1;
