-- concept_scores: the scores of a concept's best features, step by step: those of the largest mean.
--
-- As best_scores.sql, without scoring the other concepts.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $concept, $top.
-- Columns: feature, place (1: the best), mean_score, step, timestep, score.
with
scored as (
    select
        step,
        timestep,
        feature,
        score
    from importance
    where concept = $concept
),

steps as (
    select count(distinct step) as n from scored
),

means as (
    select
        feature,
        sum(score) / max(steps.n) as mean_score
    from scored
    cross join steps
    group by feature
),

ranked as (
    select
        *,
        row_number() over (order by round(mean_score, 12) desc, feature) as place
    from means
),

final as (
    select
        scored.feature,
        place,
        mean_score,
        scored.step,
        scored.timestep,
        scored.score
    from scored
    inner join ranked on scored.feature = ranked.feature
    where place <= $top
    order by place, scored.step
)

select * from final
