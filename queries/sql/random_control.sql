-- random_control: as many random features as a concept's selection has, to ablate as a control.
--
-- Drawn from the features that fire in the concept's samples at that step and are not selected; the
-- same order of features at every step.
--
-- Relations: importance, the result of importance.sql, and shuffled(feature, place): the latents in
-- a random order.
-- Parameters: $concept, $top.
-- Columns: step, timestep, feature, score, mean_concept, mean_other, mean_all, as selection.sql.
with
scored as (
    select * from importance
    where concept = $concept
),

ranked as (
    select
        *,
        row_number() over (partition by step order by score desc, feature) as rank
    from scored
),

sizes as (
    select
        step,
        count(*) as n
    from ranked
    where rank <= $top and score > 0
    group by step
),

candidates as (
    select
        ranked.*,
        row_number() over (partition by step order by place) as turn
    from ranked
    inner join shuffled using (feature)
    where mean_concept > 0 and not (rank <= $top and score > 0)
),

final as (
    select
        step,
        timestep,
        feature,
        score,
        mean_concept,
        mean_other,
        mean_all
    from candidates
    inner join sizes using (step)
    where turn <= n
    order by step, score desc, feature
)

select * from final
