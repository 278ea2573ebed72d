-- well_profiles: wells with what they were treated with. A profile without a layout is kept, treatment NULL.
-- Grain: one row per (source, batch, plate, well)
-- Reads: feature_set.wells, wells
-- Columns: concentration in `unit`; field_count, cell_count in numbers; embedding FLOAT[dim]
CREATE OR REPLACE VIEW feature_set.well_profiles AS
SELECT
    profiles.source,
    profiles.batch,
    profiles.plate,
    profiles.well,
    layout.treatment,
    layout.compound,
    layout.concentration,
    layout.unit,
    layout.control_type,
    profiles.field_count,
    profiles.cell_count,
    profiles.embedding
FROM feature_set.wells AS profiles
LEFT JOIN main.wells AS layout
    ON
        profiles.source = layout.source
        AND profiles.batch = layout.batch
        AND profiles.plate = layout.plate
        AND profiles.well = layout.well;
