-- concept_sums: the rows of sums that a question is about: a family's, of a branch and some steps.
--
-- Relations: sums, the result of sums.sql.
-- Parameters: $sae, $branch, $family, $first_step, $last_step.
-- Columns: concept, step, timestep, feature, sum, n_samples, sum_all_features (as sums).
with
final as (
    select
        concept,
        step,
        timestep,
        feature,
        "sum",
        n_samples,
        sum_all_features
    from sums
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
    order by concept, step, feature
)

select * from final
