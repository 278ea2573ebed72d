-- wells_unique: wells that stand twice in the layout.
SELECT
    wells.source,
    wells.plate,
    wells.well,
    count(*) AS times
FROM main.wells
GROUP BY wells.source, wells.plate, wells.well
HAVING count(*) > 1;
