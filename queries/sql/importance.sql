-- importance: how much each feature belongs to each concept of a family, step by step.
--
-- score(i,t,c) = mu(i,t,D_c) / (sum_j mu(j,t,D_c) + delta)
--              - mu(i,t,D_other) / (sum_j mu(j,t,D_other) + delta)
-- (SAeUron, arXiv 2501.18052, section 3). mu is the mean over samples of the mean over positions,
-- absent codes counting as 0; D_other pools the samples of all other concepts. A sample without a
-- label belongs to neither.
--
-- Relations: sums and totals, the results of sums.sql and totals.sql.
-- Parameters: $sae, $branch, $family, $first_step, $last_step, $map_positions, $delta,
-- $only_fired.
-- Columns: as the table scores (docs/format.md), and share_concept and share_other, the two terms
-- of the score: every concept, and every feature that fired at the step in a sample of any concept.
-- $only_fired leaves out those that did not fire in the concept's own samples, whose scores are
-- never positive.
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

pairs as (
    select * from fired
    union all
    select * from silent
),

means as (
    select
        concept,
        step,
        timestep,
        feature,
        mean_concept,
        mean_all,
        sum_other / n_other / $map_positions as mean_other,
        sum_all_concept / n_concept / $map_positions as sum_of_means_concept,
        sum_all_other / n_other / $map_positions as sum_of_means_other
    from pairs
),

shares as (
    select
        *,
        mean_concept / (sum_of_means_concept + $delta) as share_concept,
        mean_other / (sum_of_means_other + $delta) as share_other
    from means
),

final as (
    select
        $family as family,
        concept,
        $branch as branch,
        step,
        timestep,
        feature,
        share_concept - share_other as score,
        mean_concept,
        mean_other,
        mean_all,
        share_concept,
        share_other
    from shares
    order by concept, step, feature
)

select * from final
