-- chosen_features: the features that would be selected for every concept, $top at each step.
--
-- At each step those with the largest scores that are positive; of equal scores the smaller feature
-- comes first. As selection.sql of each concept, but for features that fire in no sample of it:
-- their scores are not positive.
--
-- Relations: importance, the result of importance.sql, also over step_candidates.sql.
-- Parameters: $top.
-- Columns: concept, step, timestep, feature, score.
with
best_of_step as (
    select
        concept,
        step,
        max_by(
            struct_pack(timestep := timestep, feature := feature, score := score),
            struct_pack(score := score, smaller_first := -feature),
            $top
        ) as entries
    from importance
    where score > 0
    group by concept, step
),

listed as (
    select
        concept,
        step,
        unnest(entries) as entry
    from best_of_step
),

final as (
    select
        listed.concept,
        listed.step,
        entry.timestep as timestep,
        entry.feature as feature,
        entry.score as score
    from listed
    order by listed.concept, listed.step, entry.feature
)

select * from final
