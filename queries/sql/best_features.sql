-- best_features: the features of each concept with the largest mean score over the steps.
--
-- The features of best_scores.sql, and at how many steps each is one of chosen_features.sql.
--
-- Relations: best_scores and chosen_features, the results of those files.
-- Columns: concept, feature, mean_score, best_score, best_timestep (where the score is largest; of
-- several the first), n_steps_in_top.
with
features as (
    select
        concept,
        feature,
        place,
        max(mean_score) as mean_score,
        max(score) as best_score,
        max_by(timestep, struct_pack(score := score, earlier_first := -step)) as best_timestep
    from best_scores
    group by concept, feature, place
),

steps_in_top as (
    select
        concept,
        feature,
        count(*) as n_steps_in_top
    from chosen_features
    group by concept, feature
),

final as (
    select
        features.concept,
        features.feature,
        features.mean_score,
        features.best_score,
        features.best_timestep,
        coalesce(steps_in_top.n_steps_in_top, 0) as n_steps_in_top
    from features
    left join steps_in_top
        on features.concept = steps_in_top.concept and features.feature = steps_in_top.feature
    order by features.concept, features.place
)

select * from final
