-- sample_features: the features that are strongest in one sample, step by step.
--
-- Relations: stats.
-- Parameters: $sae, $branch, $sample, $top (of each step, by total).
-- Columns: step, timestep, feature, total (over positions), max, n_positions (at which it fired).
with
fired as (
    select
        step,
        timestep,
        feature,
        "sum"::double as total,
        "max",
        n_positions
    from stats
    where sae = $sae and branch = $branch and sample_id = $sample
),

ranked as (
    select
        *,
        row_number() over (partition by step order by total desc, feature) as strength_rank
    from fired
),

final as (
    select
        step,
        timestep,
        feature,
        total,
        "max",
        n_positions
    from ranked
    where strength_rank <= $top
    order by step, total desc, feature
)

select * from final
