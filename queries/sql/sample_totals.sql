-- sample_totals: how much each sample has of a feature, and when most.
--
-- Relations: stats.
-- Parameters: $sae, $branch, $feature.
-- Columns: sample_id, total (over steps and positions), max, peak_step and peak_timestep (where max
-- is; of several the first), n_steps (at which it fired); a sample in which it never fired is left
-- out.
with
fired as (
    select
        sample_id,
        step,
        timestep,
        "sum"::double as total,
        "max" as highest,
        row_number() over (partition by sample_id order by "max" desc, step) as strength_rank
    from stats
    where sae = $sae and branch = $branch and feature = $feature
),

final as (
    select
        sample_id,
        sum(total) as total,
        max(highest) as "max",
        max(case when strength_rank = 1 then step end) as peak_step,
        max(case when strength_rank = 1 then timestep end) as peak_timestep,
        count(*) as n_steps
    from fired
    group by sample_id
    order by sample_id
)

select * from final
