-- feature_samples: a feature in each sample in which it fired, all steps together.
--
-- Sums are taken of whole multiples of 1/$unit, as in sums.sql, so no order of rows changes a bit.
-- peak_step is where max is, of several steps the first: the largest of max * (1 + e), e being
-- larger at earlier steps, but always smaller than what two float32 values differ by (2^-24).
--
-- Relations: stats.
-- Parameters: $sae, $branch, $first_feature, $last_feature, $unit.
-- Columns: as the table feature_samples (docs/format.md, section 1.5).
with
fired as (
    select
        feature,
        sample_id,
        step,
        "max" as highest,
        n_positions,
        ("sum"::double * $unit)::decimal(38, 0) as units,
        ("max"::double + 1e-60) * (1 + (65535 - step) / 2199023255552::double) as height
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
        sample_id,
        sum(units)::double / $unit as "sum",
        max(highest) as "max",
        max_by(step, height) as peak_step,
        count(*) as n_steps,
        sum(n_positions) as n_positions
    from fired
    group by feature, sample_id
    order by feature, sample_id
)

select * from final
