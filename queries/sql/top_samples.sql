-- top_samples: the samples that have most of a feature.
--
-- Relations: stats, samples.
-- Parameters: $sae, $branch, $feature, $top.
-- Columns: sample_id, prompt, seed, total (over steps and positions), max, peak_step and
-- peak_timestep (where max is; of several the first), n_steps (at which it fired).
with
fired as (
    select
        sample_id,
        step,
        timestep,
        "sum"::double as total,
        "max" as highest,
        row_number() over (partition by sample_id order by "max" desc, step) as place
    from stats
    where sae = $sae and branch = $branch and feature = $feature
),

per_sample as (
    select
        sample_id,
        sum(total) as total,
        max(highest) as "max",
        max(case when place = 1 then step end) as peak_step,
        max(case when place = 1 then timestep end) as peak_timestep,
        count(*) as n_steps
    from fired
    group by sample_id
),

-- A family may have any name, also one of these: columns of samples are named with their table.
final as (
    select
        per_sample.sample_id,
        samples.prompt,
        samples.seed,
        per_sample.total,
        per_sample."max",
        per_sample.peak_step,
        per_sample.peak_timestep,
        per_sample.n_steps
    from per_sample
    inner join samples on per_sample.sample_id = samples.sample_id
    order by per_sample.total desc, per_sample.sample_id
    limit $top
)

select * from final
