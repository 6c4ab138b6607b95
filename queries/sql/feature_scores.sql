-- feature_scores: one feature's rows for one concept, as a selection that holds this feature at every step has them.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $concept, $feature.
-- Columns: step, timestep, feature, score, mean_concept, mean_other, mean_all, as selection.sql.
with
final as (
    select step, timestep, feature, score, mean_concept, mean_other, mean_all
    from importance
    where concept = $concept and feature = $feature
    order by step
)
select * from final
