-- timestep_profile: when a feature is active: one row per step, also where it never fired.
--
-- Relations: feature_steps, codes, saes.
-- Parameters: $sae, $branch, $feature.
-- Columns: step, timestep, density (share of the samples in which it fired), mean (over samples and
-- positions), max, mean_active (over the positions at which it fired; null where it never fired).
with
sizes as (
    select map_positions
    from saes
    where sae = $sae
),

steps as (
    select
        step,
        min(timestep) as timestep,
        count(*) as n_rows
    from codes
    where sae = $sae and branch = $branch
    group by step
),

fired as (
    select
        step,
        n_samples as n_fired,
        "sum" as total,
        "max" as highest,
        n_positions as n_active
    from feature_steps
    where sae = $sae and branch = $branch and feature = $feature
),

final as (
    select
        steps.step,
        steps.timestep,
        coalesce(n_fired, 0) / n_rows as density,
        coalesce(total, 0) / n_rows / map_positions as mean,
        coalesce(highest, 0) as "max",
        total / n_active as mean_active
    from steps
    left join fired on steps.step = fired.step
    cross join sizes
    order by step
)

select * from final
