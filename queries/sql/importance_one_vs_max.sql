-- importance_one_vs_max: how much more of a feature a concept has than the concept next to it.
--
-- score(i,t,c) = share(i,t,c) - max over the other concepts of their shares; share(i,t,c) =
-- mu(i,t,D_c) / (sum_j mu(j,t,D_c) + delta). Stricter than the published score, which pools the
-- other concepts: a feature that two concepts share scores at most 0.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $delta.
-- Columns: family, concept, branch, step, timestep, feature, score, share, share_next (the largest
-- among the other concepts).
with
shares as (
    select
        *,
        mean_concept / (
            sum(mean_concept) over (
                partition by concept, step
                order by feature rows between unbounded preceding and unbounded following
            ) + $delta
        ) as share
    from importance
),

ranked as (
    select
        *,
        row_number() over (partition by step, feature order by share desc, concept) as place
    from shares
),

two_largest as (
    select
        step,
        feature,
        max(case when place = 1 then share end) as largest,
        max(case when place = 2 then share end) as second
    from ranked
    group by step, feature
),

compared as (
    select
        ranked.*,
        case when place = 1 then second else largest end as share_next
    from ranked
    inner join two_largest using (step, feature)
),

final as (
    select
        family,
        concept,
        branch,
        step,
        timestep,
        feature,
        share - share_next as score,
        share,
        share_next
    from compared
    order by concept, step, feature
)

select * from final
