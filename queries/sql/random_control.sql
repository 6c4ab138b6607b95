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
        row_number() over (partition by step order by score desc, feature) as score_rank
    from scored
),

sizes as (
    select
        step,
        count(*) as n
    from ranked
    where score_rank <= $top and score > 0
    group by step
),

candidates as (
    select
        ranked.*,
        row_number() over (partition by step order by place) as draw
    from ranked
    inner join shuffled using (feature)
    where mean_concept > 0 and not (score_rank <= $top and score > 0)
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
    where draw <= n
    order by step, score desc, feature
)

select * from final
