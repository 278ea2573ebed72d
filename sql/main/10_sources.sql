-- sources: the places (sites, partners) that plates came from.
-- Grain: one row per (source)
-- Reads: plates
-- Columns: batch_count, plate_count in numbers
CREATE OR REPLACE VIEW main.sources AS
SELECT
    plates.source,
    count(DISTINCT plates.batch) AS batch_count,
    count(*) AS plate_count
FROM main.plates
GROUP BY plates.source;
