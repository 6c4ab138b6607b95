-- feature_totals: the rows of totals that a question is about, as concept_sums.sql has of sums.
--
-- Relations: totals, the result of totals.sql.
-- Parameters: $sae, $branch, $family, $first_step, $last_step.
-- Columns: step, timestep, feature, total, mean_all, n_samples, total_all_features (as totals).
with
final as (
    select
        step,
        timestep,
        feature,
        total,
        mean_all,
        n_samples,
        total_all_features
    from totals
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
    order by step, feature
)

select * from final
