-- chosen_pairs: what the scores of some concepts and features are computed from, step by step.
--
-- Relations: chosen_sums: rows with the columns of concept_sums.sql, by default all of its result;
-- feature_totals, the result of feature_totals.sql.
-- Parameters: $map_positions.
-- Columns: as pairs.sql.
with
final as (
    select
        chosen_sums.concept,
        chosen_sums.step,
        chosen_sums.timestep,
        chosen_sums.feature,
        chosen_sums."sum" / chosen_sums.n_samples / $map_positions as mean_concept,
        greatest(feature_totals.total - chosen_sums."sum", 0) as sum_other,
        chosen_sums.n_samples as n_concept,
        feature_totals.n_samples - chosen_sums.n_samples as n_other,
        chosen_sums.sum_all_features as sum_all_concept,
        feature_totals.total_all_features - chosen_sums.sum_all_features as sum_all_other,
        feature_totals.mean_all
    from chosen_sums
    inner join feature_totals
        on
            chosen_sums.step = feature_totals.step
            and chosen_sums.feature = feature_totals.feature
    order by chosen_sums.concept, chosen_sums.step, chosen_sums.feature
)

select * from final
