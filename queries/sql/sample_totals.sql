-- sample_totals: how much each sample has of a feature, and when most.
--
-- Relations: feature_samples, feature_steps.
-- Parameters: $sae, $branch, $feature.
-- Columns: sample_id, total (over steps and positions), max, peak_step and peak_timestep (where max
-- is; of several the first), n_steps (at which it fired); a sample in which it never fired is left
-- out.
with
per_sample as (
    select
        sample_id,
        "sum" as total,
        "max" as highest,
        peak_step,
        n_steps
    from feature_samples
    where sae = $sae and branch = $branch and feature = $feature
),

timesteps as (
    select
        step,
        timestep
    from feature_steps
    where sae = $sae and branch = $branch and feature = $feature
),

final as (
    select
        per_sample.sample_id,
        per_sample.total,
        per_sample.highest as "max",
        per_sample.peak_step,
        timesteps.timestep as peak_timestep,
        per_sample.n_steps
    from per_sample
    inner join timesteps on per_sample.peak_step = timesteps.step
    order by per_sample.sample_id
)

select * from final
