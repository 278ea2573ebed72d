-- well_profiles_passing: well_profiles less the wells that are flagged.
-- Grain: one row per (source, batch, plate, well)
-- Reads: feature_set.well_profiles, feature_set.well_flags
-- Columns: as in well_profiles
CREATE OR REPLACE VIEW feature_set.well_profiles_passing AS
SELECT profiles.*
FROM feature_set.well_profiles AS profiles
ANTI JOIN (
    SELECT
        wells.source,
        wells.batch,
        wells.plate,
        wells.well
    FROM feature_set.well_flags AS wells
    WHERE wells.is_flagged
) AS flagged
    ON
        profiles.source = flagged.source
        AND profiles.batch = flagged.batch
        AND profiles.plate = flagged.plate
        AND profiles.well = flagged.well;
