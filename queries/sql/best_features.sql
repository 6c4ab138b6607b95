-- best_features: the features of each concept with the largest mean score over the steps.
--
-- Means are taken of whole multiples of 1/$unit, as in sums.sql; those that agree to 12 decimals
-- count as equal. Of equal ones, and of equal scores, the smaller feature comes first; a feature is
-- among the best of a step if its score is positive.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $top, $unit.
-- Columns: concept, feature, mean_score, best_score, best_timestep (where the score is largest; of
-- several the first), n_steps_in_top.
with
scored as (
    select
        concept,
        step,
        timestep,
        feature,
        score
    from importance
),

steps as (
    select count(distinct step) as n_steps from scored
),

best_of_step as (
    select
        concept,
        step,
        max_by(feature, struct_pack(score := score, smaller_first := -feature), $top) as features
    from scored
    where score > 0
    group by concept, step
),

listed as (
    select
        concept,
        unnest(features) as feature
    from best_of_step
),

steps_in_top as (
    select
        concept,
        feature,
        count(*) as n_steps_in_top
    from listed
    group by concept, feature
),

features as (
    select
        concept,
        feature,
        sum((score * $unit)::decimal(38, 0)) as units,
        max(score) as best_score,
        max_by(timestep, struct_pack(score := score, earlier_first := -step)) as best_timestep
    from scored
    group by concept, feature
),

means as (
    select
        features.concept,
        features.feature,
        features.units::double / $unit / steps.n_steps as mean_score,
        features.best_score,
        features.best_timestep,
        coalesce(steps_in_top.n_steps_in_top, 0) as n_steps_in_top
    from features
    cross join steps
    left join steps_in_top
        on
            features.concept = steps_in_top.concept
            and features.feature = steps_in_top.feature
),

ranked as (
    select
        *,
        row_number() over (
            partition by concept order by round(mean_score, 12) desc, feature
        ) as mean_rank
    from means
),

final as (
    select
        concept,
        feature,
        mean_score,
        best_score,
        best_timestep,
        n_steps_in_top
    from ranked
    where mean_rank <= $top
    order by concept, mean_rank
)

select * from final
