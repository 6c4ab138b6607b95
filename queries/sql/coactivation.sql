-- coactivation: the features that fire in the same rows (sample and step) as a feature.
--
-- Relations: feature_masks, feature_steps, codes.
-- Parameters: $sae, $branch, $feature, $top.
-- Columns: feature, n_both (rows), n_feature, n_other, jaccard, lift (1: as often together as by
-- chance).
with
encoded as (
    select count(*) as n_rows from codes
    where sae = $sae and branch = $branch
),

mine as (
    select
        sample_id,
        first_step,
        steps,
        later_steps
    from feature_masks
    where sae = $sae and branch = $branch and feature = $feature
),

counts as (
    select
        feature,
        sum(n_samples) as n_rows_fired
    from feature_steps
    where sae = $sae and branch = $branch
    group by feature
),

own as (
    select n_rows_fired as n_feature from counts
    where feature = $feature
),

shared as (
    select
        other.feature,
        sum(
            bit_count(other.steps & mine.steps) + bit_count(other.later_steps & mine.later_steps)
        ) as n_both
    from feature_masks as other
    inner join mine on other.sample_id = mine.sample_id and other.first_step = mine.first_step
    where other.sae = $sae and other.branch = $branch and other.feature <> $feature
    group by other.feature
),

together as (
    select
        shared.feature,
        shared.n_both,
        own.n_feature,
        counts.n_rows_fired as n_other
    from shared
    inner join counts on shared.feature = counts.feature
    cross join own
    where shared.n_both > 0
),

final as (
    select
        feature,
        n_both,
        n_feature,
        n_other,
        n_both / (n_feature + n_other - n_both) as jaccard,
        n_both::double * n_rows / (n_feature * n_other) as lift
    from together
    cross join encoded
    order by jaccard desc, feature
    limit $top
)

select * from final
