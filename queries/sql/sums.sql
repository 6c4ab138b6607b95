-- sums: how much of each feature all samples of a concept have together, step by step.
--
-- With these rows and those of totals.sql a score needs no statistics. Sums are taken of whole
-- multiples of 1/$unit (2^-72), so they do not depend on the order of samples, shards and threads.
-- A concept in which nothing fired at a step has one row there, with sum 0, so that every row says
-- what is the same for its concept and step: n_samples, and the sum over all features.
--
-- Relations: stats, and labelled(sample_id, concept): the encoded samples of the family.
-- Parameters: $sae, $branch, $family, $first_step, $last_step, $unit.
-- Columns: as the table sums (docs/format.md, section 1.5).
with
fired as (
    select
        stats.sample_id,
        stats.step,
        stats.timestep,
        stats.feature,
        (stats."sum"::double * $unit)::decimal(38, 0) as units
    from stats
    where
        stats.sae = $sae
        and stats.branch = $branch
        and stats.step between $first_step and $last_step
),

concepts as (
    select
        concept,
        count(*) as n_samples
    from labelled
    group by concept
),

features as (
    select
        labelled.concept,
        fired.step,
        fired.feature,
        min(fired.timestep) as timestep,
        sum(fired.units) as units
    from fired
    inner join labelled on fired.sample_id = labelled.sample_id
    group by labelled.concept, fired.step, fired.feature
),

steps as (
    select
        step,
        min(timestep) as timestep,
        min(feature) as first_feature
    from features
    group by step
),

concept_steps as (
    select
        concept,
        step,
        sum(units) as units
    from features
    group by concept, step
),

-- Every concept at every step, also where nothing fired in its samples.
members as (
    select
        concepts.concept,
        concepts.n_samples,
        steps.step,
        steps.timestep,
        steps.first_feature,
        coalesce(concept_steps.units, 0)::double / $unit as sum_all_features,
        concept_steps.concept is null as is_silent
    from concepts
    cross join steps
    left join concept_steps
        on concepts.concept = concept_steps.concept and steps.step = concept_steps.step
),

summed as (
    select
        features.concept,
        features.step,
        members.timestep,
        features.feature,
        features.units::double / $unit as feature_sum,
        members.n_samples,
        members.sum_all_features
    from features
    inner join members on features.concept = members.concept and features.step = members.step
    union all
    select
        concept,
        step,
        timestep,
        first_feature as feature,
        0::double as feature_sum,
        n_samples,
        sum_all_features
    from members
    where is_silent
),

final as (
    select
        $family as family,
        concept,
        $branch as branch,
        step,
        timestep,
        feature,
        feature_sum as "sum",
        n_samples,
        sum_all_features
    from summed
    order by concept, step, feature
)

select * from final
