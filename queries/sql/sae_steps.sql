-- sae_steps: how an SAE is used, step by step.
--
-- Relations: feature_steps, codes, saes.
-- Parameters: $sae, $branch, $n_latents.
-- Columns: step, timestep, n_samples (encoded), l0 (features that fire at a position, on average),
-- n_alive (latents that fired in any sample), n_dead (those that did not).
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
        count(*) as n_samples
    from codes
    where sae = $sae and branch = $branch
    group by step
),

fired as (
    select
        step,
        count(*) as n_alive,
        sum(n_positions) as n_active
    from feature_steps
    where sae = $sae and branch = $branch
    group by step
),

final as (
    select
        steps.step,
        steps.timestep,
        steps.n_samples,
        coalesce(n_active, 0) / steps.n_samples / map_positions as l0,
        coalesce(n_alive, 0) as n_alive,
        $n_latents - coalesce(n_alive, 0) as n_dead
    from steps
    left join fired on steps.step = fired.step
    cross join sizes
    order by steps.step
)

select * from final
