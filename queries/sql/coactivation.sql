-- coactivation: the features that fire in the same rows (sample and step) as a feature.
--
-- Relations: stats, codes.
-- Parameters: $sae, $branch, $feature, $top.
-- Columns: feature, n_both (rows), n_feature, n_other, jaccard, lift (1: as often together as by
-- chance).
with
encoded as (
    select count(*) as n_rows from codes
    where sae = $sae and branch = $branch
),

fired as (
    select
        sample_id,
        step,
        feature
    from stats
    where sae = $sae and branch = $branch
),

with_feature as (
    select
        sample_id,
        step
    from fired
    where feature = $feature
),

own as (
    select count(*) as n_feature from with_feature
),

counts as (
    select
        feature,
        count(*) as n_other
    from fired
    group by feature
),

together as (
    select
        feature,
        count(*) as n_both
    from fired
    inner join with_feature using (sample_id, step)
    where feature <> $feature
    group by feature
),

final as (
    select
        together.feature,
        n_both,
        n_feature,
        n_other,
        n_both / (n_feature + n_other - n_both) as jaccard,
        n_both::double * n_rows / (n_feature * n_other) as lift
    from together
    inner join counts on together.feature = counts.feature
    cross join own
    cross join encoded
    order by jaccard desc, feature
    limit $top
)

select * from final
