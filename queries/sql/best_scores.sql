-- best_scores: step by step the scores of each concept's best features, those with the largest mean score over the steps.
--
-- Means that agree to 12 decimals count as equal; of equal ones the smaller feature comes first.
--
-- Relations: scored, the result of importance.sql for one family.
-- Parameters: $top.
-- Columns: concept, feature, place (1: the best), mean_score, step, timestep, score.
with
steps as (
    select count(distinct step) as n from scored
),
means as (
    select concept, feature, sum(score) / (select n from steps) as mean_score from scored group by concept, feature
),
ranked as (
    select
        *,
        row_number() over (partition by concept order by round(mean_score, 12) desc, feature) as place
    from means
),
final as (
    select scored.concept, scored.feature, place, mean_score, scored.step, scored.timestep, scored.score
    from scored
    join ranked on ranked.concept = scored.concept and ranked.feature = scored.feature
    where place <= $top
    order by scored.concept, place, scored.step
)
select * from final
