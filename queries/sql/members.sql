-- members: how many samples a concept has, and what all features have in them, step by step.
--
-- Relations: sums, the result of sums.sql.
-- Parameters: $sae, $branch, $family.
-- Columns: concept, step, n_samples, sum_all_features.
with
final as (
    select
        concept,
        step,
        max(n_samples) as n_samples,
        max(sum_all_features) as sum_all_features
    from sums
    where sae = $sae and family = $family and branch = $branch
    group by concept, step
    order by concept, step
)

select * from final
