-- position_features: every feature that fires in one sample at one step, position by position.
--
-- Relations: codes.
-- Parameters: $sae, $branch, $sample, $step, $map_width.
-- Columns: position, map_row, map_column, feature, value (float16 as in codes).
with
maps as (
    select
        features,
        "values"
    from codes
    where sae = $sae and branch = $branch and sample_id = $sample and step = $step
),

positions as (
    select
        unnest(range(len(features))) as position,
        unnest(features) as latents,
        unnest("values") as activations
    from maps
),

places as (
    select
        position,
        unnest(latents) as feature,
        unnest(activations) as value
    from positions
),

final as (
    select
        position,
        position // $map_width as map_row,
        position % $map_width as map_column,
        feature,
        value
    from places
    order by position, value desc, feature
)

select * from final
