-- plate_balance: what each load of a plate saw, took in and rejected, and whether the counts add up.
-- Grain: one row per (feature_set, source, batch, plate)
-- Reads: plate_loads
-- Columns: counts in numbers; is_balanced is false where something is neither in nor accounted for
CREATE OR REPLACE VIEW main.plate_balance AS
SELECT
    loads.feature_set,
    loads.source,
    loads.batch,
    loads.plate,
    loads.images_seen,
    loads.images_in,
    loads.images_rejected,
    loads.cells_seen,
    loads.cells_in,
    loads.cells_rejected,
    loads.profiles_seen,
    loads.profiles_seen - loads.profiles_rejected AS profiles_in,
    loads.profiles_rejected,
    loads.wells_in_layout,
    loads.wells_in,
    loads.wells_without_data,
    loads.wells_without_layout,
    loads.images_seen = loads.images_in + loads.images_rejected
    AND loads.cells_seen = loads.cells_in + loads.cells_rejected
    AND loads.profiles_rejected BETWEEN 0 AND loads.profiles_seen
    AND loads.wells_in_layout + loads.wells_without_layout = loads.wells_in + loads.wells_without_data
        AS is_balanced
FROM main.plate_loads AS loads;
