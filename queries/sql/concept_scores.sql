-- concept_scores: the scores of a concept's best features, step by step: those of the largest mean.
--
-- As best_scores.sql, of one concept.
--
-- Relations: best_scores, the result of best_scores.sql.
-- Parameters: none.
-- Columns: feature, place (1: the best), mean_score, step, timestep, score.
with
final as (
    select
        feature,
        place,
        mean_score,
        step,
        timestep,
        score
    from best_scores
    order by place, step
)

select * from final
