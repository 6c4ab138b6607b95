-- best_features: the features of each concept with the largest mean score over the steps.
--
-- Relations: scored, the result of importance.sql for one family.
-- Parameters: $top.
-- Columns: concept, feature, mean_score, best_score, best_timestep (where the score is largest; of several the first), n_steps_in_top.
with
ranked as (
    select
        *,
        row_number() over (partition by concept, step order by score desc, feature) as place,
        row_number() over (partition by concept, feature order by score desc, step) as turn
    from scored
),
steps as (
    select count(distinct step) as n from scored
),
features as (
    select
        concept,
        feature,
        sum(score) / (select n from steps) as mean_score,
        max(score) as best_score,
        max(case when turn = 1 then timestep end) as best_timestep,
        count(*) filter (place <= $top and score > 0) as n_steps_in_top
    from ranked
    group by concept, feature
),
final as (
    select * from features
    qualify row_number() over (partition by concept order by mean_score desc, feature) <= $top
    order by concept, mean_score desc, feature
)
select * from final
