-- dense_features: the latents that fire in at least a share of all rows (samples × steps).
--
-- Relations: feature_steps, codes, saes.
-- Parameters: $sae, $branch, $threshold, $unit.
-- Columns: feature, density, position_density (share of all positions), mean (over rows and
-- positions), max.
with
sizes as (
    select map_positions
    from saes
    where sae = $sae
),

encoded as (
    select count(*) as n_rows from codes
    where sae = $sae and branch = $branch
),

fired as (
    select
        feature,
        sum(n_samples) as n_fired,
        sum(n_positions) as n_active,
        sum(("sum" * $unit)::decimal(38, 0))::double / $unit as total,
        max("max") as highest
    from feature_steps
    where sae = $sae and branch = $branch
    group by feature
),

final as (
    select
        feature,
        n_fired / n_rows as density,
        n_active / n_rows / map_positions as position_density,
        total / n_rows / map_positions as mean,
        highest as "max"
    from fired
    cross join encoded
    cross join sizes
    where n_fired / n_rows >= $threshold
    order by density desc, feature
)

select * from final
