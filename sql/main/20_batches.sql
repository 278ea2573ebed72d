-- batches: the experimental runs that plates were made in.
-- Grain: one row per (source, batch)
-- Reads: plates
-- Columns: plate_count in numbers
CREATE OR REPLACE VIEW main.batches AS
SELECT
    plates.source,
    plates.batch,
    count(*) AS plate_count
FROM main.plates
GROUP BY plates.source, plates.batch;
