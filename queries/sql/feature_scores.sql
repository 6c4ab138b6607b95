-- feature_scores: the rows of some features for one concept, as a selection has them.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $concept, $features (numbers with commas between them, such as 41,57).
-- Columns: step, timestep, feature, score, mean_concept, mean_other, mean_all, as selection.sql.
with
final as (
    select
        step,
        timestep,
        feature,
        score,
        mean_concept,
        mean_other,
        mean_all
    from importance
    where
        concept = $concept
        and concat(',', $features, ',') like concat('%,', cast(feature as varchar), ',%')
    order by step, score desc, feature
)

select * from final
