-- best_step_sums: the sums of the features with a concept's best scores, $top at each step.
--
-- Of step_candidates.sql what is best, also where that is not positive; of equal scores the smaller
-- feature comes first: what is kept of it.
--
-- Relations: step_candidates, the result of step_candidates.sql; importance, the result of
-- importance.sql over it.
-- Parameters: $top.
-- Columns: as concept_sums.sql.
with
best_of_step as (
    select
        concept,
        step,
        max_by(feature, struct_pack(score := score, smaller_first := -feature), $top) as features
    from importance
    group by concept, step
),

best as (
    select
        concept,
        step,
        unnest(features) as feature
    from best_of_step
),

final as (
    select
        step_candidates.concept,
        step_candidates.step,
        step_candidates.timestep,
        step_candidates.feature,
        step_candidates."sum",
        step_candidates.n_samples,
        step_candidates.sum_all_features
    from step_candidates
    inner join best
        on
            step_candidates.concept = best.concept
            and step_candidates.step = best.step
            and step_candidates.feature = best.feature
    order by step_candidates.concept, step_candidates.step, step_candidates.feature
)

select * from final
