-- best_scores: the scores of each concept's best features, step by step: those of the largest mean.
--
-- Means over the steps are taken of whole multiples of 1/$unit, as in sums.sql, so no order of rows
-- changes a bit. Those that agree to 12 decimals count as equal; of equal ones the smaller feature
-- comes first.
--
-- Relations: importance, the result of importance.sql over candidates.sql; feature_totals, the
-- result of feature_totals.sql.
-- Parameters: $concept (null: all), $top, $unit.
-- Columns: concept, feature, place (1: the best), mean_score, step, timestep, score.
with
scores as (
    select
        concept,
        feature,
        step,
        timestep,
        score
    from importance
    where $concept is null or concept = $concept
),

steps as (
    select count(distinct step) as n_steps from feature_totals
),

features as (
    select
        concept,
        feature,
        sum((score * $unit)::decimal(38, 0)) as units
    from scores
    group by concept, feature
),

means as (
    select
        concept,
        feature,
        units::double / $unit / n_steps as mean_score
    from features
    cross join steps
),

ranked as (
    select
        concept,
        feature,
        mean_score,
        row_number()
            over (partition by concept order by round(mean_score, 12) desc, feature)
            as place
    from means
),

final as (
    select
        scores.concept,
        scores.feature,
        place,
        mean_score,
        scores.step,
        scores.timestep,
        scores.score
    from scores
    inner join ranked on scores.concept = ranked.concept and scores.feature = ranked.feature
    where place <= $top
    order by scores.concept, place, scores.step
)

select * from final
