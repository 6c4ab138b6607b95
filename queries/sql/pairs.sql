-- pairs: what a score is computed from, for every concept and feature that fired, step by step.
--
-- The rows of every concept and every feature that fired at the step in a sample of any concept.
-- $only_fired leaves out those that did not fire in the concept's own samples, whose scores are
-- never positive.
--
-- Relations: chosen_pairs, of all concept_sums; concept_sums, feature_totals and members, the
-- results of the files of these names.
-- Parameters: $only_fired.
-- Columns: concept, step, timestep, feature, mean_concept (over samples and positions), sum_other
-- (over the samples of the other concepts), n_concept and n_other (samples), sum_all_concept and
-- sum_all_other (of all features), mean_all (as the table totals).
with
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
    select
        concept,
        step,
        timestep,
        feature,
        mean_concept,
        sum_other,
        n_concept,
        n_other,
        sum_all_concept,
        sum_all_other,
        mean_all
    from chosen_pairs
    union all
    select * from silent
    order by concept, step, feature
)

select * from final
