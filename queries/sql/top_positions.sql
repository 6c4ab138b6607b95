-- top_positions: the places, in samples and on the map, at which a feature is strongest.
--
-- Relations: codes, stats (which says where to look), samples.
-- Parameters: $sae, $branch, $feature, $top, $map_width.
-- Columns: sample_id, prompt, seed, step, timestep, position, map_row, map_column, value (float16
-- as in codes).
with
where_it_fired as (
    select
        sample_id,
        step
    from stats
    where sae = $sae and branch = $branch and feature = $feature
),

maps as (
    select *
    from codes
    semi join where_it_fired using (sample_id, step)
    where sae = $sae and branch = $branch
),

positions as (
    select
        sample_id,
        step,
        timestep,
        unnest(range(len(features))) as position,
        unnest(features) as latents,
        unnest("values") as activations
    from maps
),

strongest as (
    select
        sample_id,
        step,
        timestep,
        position,
        position // $map_width as map_row,
        position % $map_width as map_column,
        activations[list_position(latents, $feature)] as value
    from positions
    where list_contains(latents, $feature)
    order by value desc, sample_id, step, position
    limit $top
),

-- A family may have any name, also one of these: columns of samples are named with their table.
final as (
    select
        strongest.sample_id,
        samples.prompt,
        samples.seed,
        strongest.step,
        strongest.timestep,
        strongest.position,
        strongest.map_row,
        strongest.map_column,
        strongest.value
    from strongest
    inner join samples on strongest.sample_id = samples.sample_id
    order by strongest.value desc, strongest.sample_id, strongest.step, strongest.position
)

select * from final
