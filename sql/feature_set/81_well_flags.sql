-- well_flags: wells of the layout or with data, and what is wrong with them.
-- Grain: one row per (source, batch, plate, well)
-- Reads: feature_set.wells, wells, feature_set.field_flags, quality_limits
-- Columns: field_count, flagged_field_count, cell_count in numbers
--   flags: sorted list, empty for none: those of its fields, where more of them are flagged than the limit
--   flagged_fields (a share) allows; 'well_cell_count low' or 'high'; 'no profile'
--   A well without a layout is not flagged for it: see has_layout.
CREATE OR REPLACE VIEW feature_set.well_flags AS
WITH limits AS (
    SELECT
        max(quality_limits.upper) FILTER (WHERE quality_limits.measure = 'flagged_fields') AS share,
        max(quality_limits.lower) FILTER (WHERE quality_limits.measure = 'well_cell_count') AS fewest,
        max(quality_limits.upper) FILTER (WHERE quality_limits.measure = 'well_cell_count') AS most
    FROM main.quality_limits
),

of_fields AS (
    SELECT
        fields.source,
        fields.batch,
        fields.plate,
        fields.well,
        count(*) AS field_count,
        count(*) FILTER (WHERE fields.is_flagged) AS flagged_field_count,
        sum(fields.cell_count)::BIGINT AS cell_count,
        flatten(list(fields.flags)) AS flags
    FROM feature_set.field_flags AS fields
    GROUP BY fields.source, fields.batch, fields.plate, fields.well
),

every_well AS (
    SELECT layout.source, layout.batch, layout.plate, layout.well
    FROM main.wells AS layout
    WHERE
        (layout.source, layout.batch, layout.plate) IN (
            SELECT (profiles.source, profiles.batch, profiles.plate) FROM feature_set.wells AS profiles
        )
    UNION
    SELECT profiles.source, profiles.batch, profiles.plate, profiles.well
    FROM feature_set.wells AS profiles
    UNION
    SELECT of_fields.source, of_fields.batch, of_fields.plate, of_fields.well
    FROM of_fields
),

described AS (
    SELECT
        every_well.source,
        every_well.batch,
        every_well.plate,
        every_well.well,
        layout.well IS NOT NULL AS has_layout,
        profiles.well IS NOT NULL AS has_profile,
        coalesce(of_fields.field_count, profiles.field_count) AS field_count,
        of_fields.flagged_field_count,
        coalesce(profiles.cell_count, of_fields.cell_count) AS cell_count,
        of_fields.flagged_field_count > limits.share * of_fields.field_count AS has_flagged_fields,
        of_fields.flags AS field_flags,
        limits.fewest,
        limits.most
    FROM every_well
    CROSS JOIN limits
    LEFT JOIN main.wells AS layout
        ON
            every_well.source = layout.source
            AND every_well.batch = layout.batch
            AND every_well.plate = layout.plate
            AND every_well.well = layout.well
    LEFT JOIN feature_set.wells AS profiles
        ON
            every_well.source = profiles.source
            AND every_well.batch = profiles.batch
            AND every_well.plate = profiles.plate
            AND every_well.well = profiles.well
    LEFT JOIN of_fields
        ON
            every_well.source = of_fields.source
            AND every_well.batch = of_fields.batch
            AND every_well.plate = of_fields.plate
            AND every_well.well = of_fields.well
),

flagged AS (
    SELECT
        described.*,
        list_sort(list_distinct(list_concat(
            CASE WHEN described.has_flagged_fields THEN described.field_flags END,
            CASE WHEN described.cell_count < described.fewest THEN ['well_cell_count low'] END,
            CASE WHEN described.cell_count > described.most THEN ['well_cell_count high'] END,
            CASE WHEN NOT described.has_profile THEN ['no profile'] END
        ))) AS flags
    FROM described
)

SELECT
    flagged.source,
    flagged.batch,
    flagged.plate,
    flagged.well,
    flagged.has_layout,
    flagged.has_profile,
    flagged.field_count,
    flagged.flagged_field_count,
    flagged.cell_count,
    coalesce(flagged.flags, []) AS flags,
    coalesce(len(flagged.flags), 0) > 0 AS is_flagged
FROM flagged;
