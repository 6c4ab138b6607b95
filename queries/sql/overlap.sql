-- overlap: how many features two concepts' selections share, step by step.
--
-- A selection is that of selection.sql with $top: the n largest positive scores, ties to the
-- smaller feature.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $concept, $other_concept, $top.
-- Columns: step, timestep, n_concept, n_other, n_both, jaccard (null where neither selects
-- anything).
with
ranked as (
    select
        *,
        row_number() over (partition by concept, step order by score desc, feature) as place
    from importance
    where score > 0 and concept in ($concept, $other_concept)
),

chosen as (
    select
        step,
        feature,
        max(case when concept = $concept then 1 else 0 end) as is_mine,
        max(case when concept = $other_concept then 1 else 0 end) as is_other
    from ranked
    where place <= $top
    group by step, feature
),

steps as (
    select
        step,
        min(timestep) as timestep
    from importance
    group by step
),

final as (
    select
        steps.step,
        min(steps.timestep) as timestep,
        coalesce(sum(is_mine), 0)::bigint as n_concept,
        coalesce(sum(is_other), 0)::bigint as n_other,
        coalesce(sum(is_mine * is_other), 0)::bigint as n_both,
        sum(is_mine * is_other) / count(chosen.feature) as jaccard
    from steps
    left join chosen on steps.step = chosen.step
    group by steps.step
    order by step
)

select * from final
