-- importance_log_ratio: how many times more of a feature a concept has than others, as a logarithm.
--
-- score(i,t,c) = ln((share(i,t,c) + smoothing) / (share(i,t,other) + smoothing)), with the shares
-- of importance.sql. It finds rare features that are exclusive; the published score, a difference
-- of shares, prefers strong ones.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $smoothing.
-- Columns: family, concept, branch, step, timestep, feature, score, share, share_other.
with
final as (
    select
        family,
        concept,
        branch,
        step,
        timestep,
        feature,
        ln((share_concept + $smoothing) / (share_other + $smoothing)) as score,
        share_concept as share,
        share_other
    from importance
    order by concept, step, feature
)

select * from final
