-- overlap: how many features two concepts' selections share, step by step.
--
-- Relations: chosen_features and importance, the results of those files.
-- Parameters: $concept, $other_concept.
-- Columns: step, timestep, n_concept, n_other, n_both, jaccard (null where neither selects
-- anything).
with
chosen as (
    select
        step,
        feature,
        max(case when concept = $concept then 1 else 0 end) as in_concept,
        max(case when concept = $other_concept then 1 else 0 end) as in_other
    from chosen_features
    where concept in ($concept, $other_concept)
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
        coalesce(sum(in_concept), 0)::bigint as n_concept,
        coalesce(sum(in_other), 0)::bigint as n_other,
        coalesce(sum(in_concept * in_other), 0)::bigint as n_both,
        sum(in_concept * in_other) / count(chosen.feature) as jaccard
    from steps
    left join chosen on steps.step = chosen.step
    group by steps.step
    order by step
)

select * from final
