-- importance_one_vs_max: how much more of a feature a concept has than the concept next to it.
--
-- score(i,t,c) = share(i,t,c) - max over the other concepts of their shares; share(i,t,c) =
-- mu(i,t,D_c) / (sum_j mu(j,t,D_c) + delta). Stricter than the published score, which pools the
-- other concepts: a feature that two concepts share scores at most 0.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: none.
-- Columns: family, concept, branch, step, timestep, feature, score, share, share_next (the largest
-- among the other concepts).
with
largest_shares as (
    select
        step,
        feature,
        max_by(share_concept, share_concept, 2) as two_largest
    from importance
    group by step, feature
),

-- Of two concepts with the same largest share, each has the other one next to it.
compared as (
    select
        importance.*,
        case
            when share_concept = two_largest[1] then two_largest[2] else two_largest[1]
        end as share_next
    from importance
    inner join largest_shares
        on importance.step = largest_shares.step and importance.feature = largest_shares.feature
),

final as (
    select
        family,
        concept,
        branch,
        step,
        timestep,
        feature,
        share_concept - share_next as score,
        share_concept as share,
        share_next
    from compared
    order by concept, step, feature
)

select * from final
