-- feature_sums: how much of a feature all samples of each concept have together, of every family.
--
-- What sums.sql adds up for the features of one family, for one or some features of all. Sums are
-- taken of whole multiples of 1/$unit, as there, so they are the same to the last bit.
--
-- Relations: stats, labels.
-- Parameters: $sae, $branch, $first_feature, $last_feature, $unit.
-- Columns: family, concept, branch, step, feature, sum.
with
fired as (
    select
        sample_id,
        step,
        feature,
        ("sum"::double * $unit)::decimal(38, 0) as units
    from stats
    where
        sae = $sae
        and branch = $branch
        and feature between $first_feature and $last_feature
),

final as (
    select
        labels.family,
        labels.concept,
        $branch as branch,
        fired.step,
        fired.feature,
        sum(fired.units)::double / $unit as "sum"
    from fired
    inner join labels on fired.sample_id = labels.sample_id
    group by labels.family, labels.concept, fired.step, fired.feature
    order by labels.family, labels.concept, fired.step, fired.feature
)

select * from final
