-- feature_steps: a feature at each step at which it fired, all samples together.
--
-- Sums are taken of whole multiples of 1/$unit, as in sums.sql, so no order of rows changes a bit.
--
-- Relations: stats.
-- Parameters: $sae, $branch, $first_feature, $last_feature, $unit.
-- Columns: as the table feature_steps (docs/format.md, section 1.5).
with
fired as (
    select
        feature,
        step,
        timestep,
        "max" as highest,
        n_positions,
        ("sum"::double * $unit)::decimal(38, 0) as units
    from stats
    where
        sae = $sae
        and branch = $branch
        and feature between $first_feature and $last_feature
),

final as (
    select
        $branch as branch,
        feature,
        step,
        min(timestep) as timestep,
        sum(units)::double / $unit as "sum",
        max(highest) as "max",
        count(*) as n_samples,
        sum(n_positions) as n_positions
    from fired
    group by feature, step
    order by feature, step
)

select * from final
