-- feature_names: the concept of a family that each feature has its largest mean score for.
--
-- Means over the steps, of whole multiples of 1/$unit, as in best_features.sql. Features without a
-- positive mean score are left out; means that agree to 12 decimals count as equal, and of equal
-- ones the concept that comes first in the order of text is taken.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $unit.
-- Columns: feature, concept, mean_score.
with
steps as (
    select count(distinct step) as n_steps from importance
),

means as (
    select
        feature,
        concept,
        sum((score * $unit)::decimal(38, 0))::double / $unit / max(steps.n_steps) as mean_score
    from importance
    cross join steps
    group by feature, concept
),

ranked as (
    select
        *,
        row_number() over (
            partition by feature order by round(mean_score, 12) desc, concept
        ) as mean_rank
    from means
    where mean_score > 0
),

final as (
    select
        feature,
        concept,
        mean_score
    from ranked
    where mean_rank = 1
    order by feature
)

select * from final
