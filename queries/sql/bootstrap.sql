-- bootstrap: the scores of a concept's best features with confidence intervals over samples.
--
-- In each replicate the samples of every concept are drawn anew, as many as there are, with
-- replacement, and the published score is computed again. The interval is score ± widening * the
-- replicates' standard deviation, within -1 and 1: Student's t in the place of the replicates' own
-- quantiles, which cover 50 to 80 of 100 true scores where 95 are promised if a concept has 2 to 5
-- samples (docs/queries.md).
--
-- Relations: chosen_features, the result of chosen_features.sql; stats, labelled, and
-- resamples(replicate, sample_id, weight, widening): how often a replicate has drawn a sample,
-- and by how much a standard deviation is multiplied for its concept; null if the concept has one
-- sample: then the interval is -1 to 1.
-- Parameters: $sae, $branch, $concept, $map_positions, $delta, $first_step, $last_step (by
-- at_step: that step); the resamples have level, replicates and random_seed.
-- Columns: step, timestep, feature, score (of all samples), low, high.
with
chosen as (
    select
        step,
        timestep,
        feature,
        score
    from chosen_features
    where concept = $concept
),

drawn as (
    select
        replicate,
        sample_id,
        weight,
        case when concept = $concept then 1 else 0 end as in_concept
    from resamples
    inner join labelled using (sample_id)
),

sizes as (
    select
        replicate,
        in_concept,
        sum(weight) as n
    from drawn
    group by replicate, in_concept
),

fired as not materialized (
    select
        sample_id,
        step,
        feature,
        "sum"::double as total
    from stats
    where sae = $sae and branch = $branch and step between $first_step and $last_step
),

rows_total as (
    select
        sample_id,
        step,
        sum(total) as total
    from fired
    group by sample_id, step
),

steps_total as (
    select
        replicate,
        in_concept,
        step,
        sum(weight * total) as total
    from rows_total
    inner join drawn using (sample_id)
    group by replicate, in_concept, step
),

chosen_rows as (
    select
        sample_id,
        step,
        feature,
        total
    from fired
    semi join chosen using (step, feature)
),

features_total as (
    select
        replicate,
        in_concept,
        step,
        feature,
        sum(weight * total) as total
    from chosen_rows
    inner join drawn using (sample_id)
    group by replicate, in_concept, step, feature
),

shares as (
    select
        sizes.replicate,
        chosen.step,
        chosen.feature,
        case when sizes.in_concept = 1 then 1 else -1 end
        * (coalesce(features_total.total, 0) / n / $map_positions)
        / (coalesce(steps_total.total, 0) / n / $map_positions + $delta) as share
    from chosen
    cross join sizes
    left join steps_total
        on
            sizes.replicate = steps_total.replicate
            and sizes.in_concept = steps_total.in_concept
            and chosen.step = steps_total.step
    left join features_total
        on
            sizes.replicate = features_total.replicate
            and sizes.in_concept = features_total.in_concept
            and chosen.step = features_total.step
            and chosen.feature = features_total.feature
),

replicates as (
    select
        replicate,
        step,
        feature,
        sum(share) as score
    from shares
    group by replicate, step, feature
),

widenings as (
    select max(widening) as widening
    from resamples
    inner join labelled using (sample_id)
    where concept = $concept
),

deviations as (
    select
        step,
        feature,
        stddev_samp(score) as deviation
    from replicates
    group by step, feature
),

final as (
    select
        step,
        timestep,
        feature,
        score,
        greatest(-1.0, score - coalesce(widening * deviation, 2.0)) as low,
        least(1.0, score + coalesce(widening * deviation, 2.0)) as high
    from chosen
    inner join deviations using (step, feature)
    cross join widenings
    order by step, score desc, feature
)

select * from final
