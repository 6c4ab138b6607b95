-- importance_log_ratio: how many times more of a feature a concept has than others, as a logarithm.
--
-- score(i,t,c) = ln((share(i,t,c) + smoothing) / (share(i,t,other) + smoothing)), with the shares
-- of importance.sql. It finds rare features that are exclusive; the published score, a difference
-- of shares, prefers strong ones.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $delta, $smoothing.
-- Columns: family, concept, branch, step, timestep, feature, score, share, share_other.
with
shares as (
    select
        *,
        mean_concept / (sum(mean_concept) over every_feature + $delta) as share,
        mean_other / (sum(mean_other) over every_feature + $delta) as share_other
    from importance
    window every_feature as (
        partition by concept, step
        order by feature rows between unbounded preceding and unbounded following
    )
),

final as (
    select
        family,
        concept,
        branch,
        step,
        timestep,
        feature,
        ln((share + $smoothing) / (share_other + $smoothing)) as score,
        share,
        share_other
    from shares
    order by concept, step, feature
)

select * from final
