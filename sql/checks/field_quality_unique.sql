-- field_quality_unique: fields that were measured more than once, or whose lists differ in length.
SELECT
    quality.source,
    quality.plate,
    quality.well,
    quality.field,
    count(*) AS times
FROM main.field_quality AS quality
GROUP BY quality.source, quality.plate, quality.well, quality.field
HAVING
    count(*) > 1
    OR bool_or(len(quality.channels) <> len(quality.focus))
    OR bool_or(len(quality.channels) <> len(quality.saturation));
