-- field_flags: fields with what was measured on them, and what of it lies outside its limits.
-- Grain: one row per (source, batch, plate, well, field)
-- Reads: field_quality, quality_limits, feature_set.fields, feature_set.wells
-- Columns: focus, saturation: lists over `channels`; foreground, saturation: shares, 0 to 1
--   flags: sorted list, such as 'focus DNA low' (low, high, missing: a constant image), empty for none
--   Fields of plates that the feature set holds, with and without cells. Measures are NULL where there were
--   no images (imported profiles, single-cell crops); what is not known is not flagged.
CREATE OR REPLACE VIEW feature_set.field_flags AS
WITH images AS (
    SELECT * FROM main.field_quality
    WHERE
        (field_quality.source, field_quality.batch, field_quality.plate) IN (
            SELECT (wells.source, wells.batch, wells.plate) FROM feature_set.wells AS wells
        )
),

counted AS (
    SELECT
        profiles.source,
        profiles.batch,
        profiles.plate,
        profiles.well,
        profiles.field,
        profiles.cell_count
    FROM feature_set.fields AS profiles
    UNION ALL
    SELECT
        images.source,
        images.batch,
        images.plate,
        images.well,
        images.field,
        images.cell_count
    FROM images
    ANTI JOIN feature_set.fields AS profiles
        ON
            images.source = profiles.source
            AND images.batch = profiles.batch
            AND images.plate = profiles.plate
            AND images.well = profiles.well
            AND images.field = profiles.field
),

measured AS (
    SELECT
        source, batch, plate, well, field, 'focus' AS measure, unnest(channels) AS channel,
        unnest(focus) AS found
    FROM images
    UNION ALL
    SELECT
        source, batch, plate, well, field, 'saturation' AS measure, unnest(channels) AS channel,
        unnest(saturation) AS found
    FROM images
    UNION ALL
    SELECT source, batch, plate, well, field, 'foreground' AS measure, NULL AS channel, foreground AS found
    FROM images
    UNION ALL
    SELECT source, batch, plate, well, field, 'cell_count' AS measure, NULL AS channel, cell_count AS found
    FROM counted
),

flagged AS (
    SELECT
        measured.source,
        measured.batch,
        measured.plate,
        measured.well,
        measured.field,
        list_sort(list(concat_ws(
            ' ',
            measured.measure,
            measured.channel,
            CASE
                WHEN measured.found IS NULL THEN 'missing'
                WHEN measured.found < limits.lower THEN 'low'
                ELSE 'high'
            END
        ))) AS flags
    FROM measured
    INNER JOIN main.quality_limits AS limits ON measured.measure = limits.measure
    WHERE
        measured.found < limits.lower
        OR measured.found > limits.upper
        OR (
            measured.found IS NULL
            AND measured.measure = 'focus'
            AND coalesce(limits.lower, limits.upper) IS NOT NULL
        )
    GROUP BY measured.source, measured.batch, measured.plate, measured.well, measured.field
)

SELECT
    counted.source,
    counted.batch,
    counted.plate,
    counted.well,
    counted.field,
    counted.cell_count,
    images.foreground,
    images.channels,
    images.focus,
    images.saturation,
    coalesce(flagged.flags, []) AS flags,
    flagged.flags IS NOT NULL AS is_flagged
FROM counted
LEFT JOIN images
    ON
        counted.source = images.source
        AND counted.batch = images.batch
        AND counted.plate = images.plate
        AND counted.well = images.well
        AND counted.field = images.field
LEFT JOIN flagged
    ON
        counted.source = flagged.source
        AND counted.batch = flagged.batch
        AND counted.plate = flagged.plate
        AND counted.well = flagged.well
        AND counted.field = flagged.field;
