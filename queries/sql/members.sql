-- members: how many samples a concept has, and what all features have in them, step by step.
--
-- Relations: concept_sums, the result of concept_sums.sql.
-- Parameters: none.
-- Columns: concept, step, n_samples, sum_all_features.
with
final as (
    select
        concept,
        step,
        max(n_samples) as n_samples,
        max(sum_all_features) as sum_all_features
    from concept_sums
    group by concept, step
    order by concept, step
)

select * from final
