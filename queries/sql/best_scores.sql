-- best_scores: the scores of each concept's best features, step by step: those of the largest mean.
--
-- Means that agree to 12 decimals count as equal; of equal ones the smaller feature comes first.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $top.
-- Columns: concept, feature, place (1: the best), mean_score, step, timestep, score.
with
steps as (
    select count(distinct step) as n from importance
),

means as (
    select
        concept,
        feature,
        sum(score) / max(steps.n) as mean_score
    from importance
    cross join steps
    group by concept, feature
),

ranked as (
    select
        *,
        row_number()
            over (partition by concept order by round(mean_score, 12) desc, feature)
            as place
    from means
),

final as (
    select
        importance.concept,
        importance.feature,
        place,
        mean_score,
        importance.step,
        importance.timestep,
        importance.score
    from importance
    inner join ranked on importance.concept = ranked.concept and importance.feature = ranked.feature
    where place <= $top
    order by importance.concept, place, importance.step
)

select * from final
