-- pairs: what a score is computed from, for every concept and feature that fired, step by step.
--
-- The rows of every concept and every feature that fired at the step in a sample of any concept.
-- $only_fired leaves out those that did not fire in the concept's own samples, whose scores are
-- never positive.
--
-- Relations: sums and totals, the results of sums.sql and totals.sql.
-- Parameters: $sae, $branch, $family, $first_step, $last_step, $map_positions, $only_fired.
-- Columns: concept, step, timestep, feature, mean_concept (over samples and positions), sum_other
-- (over the samples of the other concepts), n_concept and n_other (samples), sum_all_concept and
-- sum_all_other (of all features), mean_all (as the table totals).
with
concept_sums as not materialized (
    select
        concept,
        step,
        timestep,
        feature,
        "sum" as feature_sum,
        n_samples,
        sum_all_features
    from sums
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
),

feature_totals as not materialized (
    select
        step,
        timestep,
        feature,
        total,
        mean_all,
        n_samples,
        total_all_features
    from totals
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
),

members as (
    select
        concept,
        step,
        max(n_samples) as n_samples,
        max(sum_all_features) as sum_all_features
    from concept_sums
    group by concept, step
),

-- What fired in a concept's samples.
fired as (
    select
        concept_sums.concept,
        concept_sums.step,
        concept_sums.timestep,
        concept_sums.feature,
        concept_sums.feature_sum / concept_sums.n_samples / $map_positions as mean_concept,
        greatest(feature_totals.total - concept_sums.feature_sum, 0) as sum_other,
        concept_sums.n_samples as n_concept,
        feature_totals.n_samples - concept_sums.n_samples as n_other,
        concept_sums.sum_all_features as sum_all_concept,
        feature_totals.total_all_features - concept_sums.sum_all_features as sum_all_other,
        feature_totals.mean_all
    from concept_sums
    inner join feature_totals
        on
            concept_sums.step = feature_totals.step
            and concept_sums.feature = feature_totals.feature
),

-- What fired in samples of other concepts only.
silent as (
    select
        members.concept,
        feature_totals.step,
        feature_totals.timestep,
        feature_totals.feature,
        0::double as mean_concept,
        feature_totals.total as sum_other,
        members.n_samples as n_concept,
        feature_totals.n_samples - members.n_samples as n_other,
        members.sum_all_features as sum_all_concept,
        feature_totals.total_all_features - members.sum_all_features as sum_all_other,
        feature_totals.mean_all
    from members
    inner join feature_totals on members.step = feature_totals.step
    left join concept_sums
        on
            members.concept = concept_sums.concept
            and members.step = concept_sums.step
            and feature_totals.feature = concept_sums.feature
    where concept_sums.feature is null and not $only_fired
),

final as (
    select * from fired
    union all
    select * from silent
    order by concept, step, feature
)

select * from final
