-- best_scores: the scores of each concept's best features, step by step: those of the largest mean.
--
-- Means over the steps are taken of whole multiples of 1/$unit, as in sums.sql, so no order of rows
-- changes a bit. Those that agree to 12 decimals count as equal; of equal ones the smaller feature
-- comes first.
--
-- Relations: importance, the result of importance.sql over candidates.sql; totals.
-- Parameters: $sae, $branch, $family, $first_step, $last_step, $top, $unit.
-- Columns: concept, feature, place (1: the best), mean_score, step, timestep, score.
with
steps as (
    select count(distinct step) as n_steps
    from totals
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
),

features as (
    select
        concept,
        feature,
        sum((score * $unit)::decimal(38, 0)) as units
    from importance
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
