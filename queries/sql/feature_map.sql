-- feature_map: where on the map, and when, a feature fires in one sample.
--
-- Relations: codes.
-- Parameters: $sae, $branch, $feature, $sample, $map_width.
-- Columns: step, timestep, position, map_row, map_column, value (float16 as in codes).
with
maps as (
    select
        step,
        timestep,
        features,
        "values"
    from codes
    where sae = $sae and branch = $branch and sample_id = $sample
),

positions as (
    select
        step,
        timestep,
        unnest(range(len(features))) as position,
        unnest(features) as latents,
        unnest("values") as activations
    from maps
),

final as (
    select
        step,
        timestep,
        position,
        position // $map_width as map_row,
        position % $map_width as map_column,
        activations[list_position(latents, $feature)] as value
    from positions
    where list_contains(latents, $feature)
    order by step, position
)

select * from final
