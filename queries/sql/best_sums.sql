-- best_sums: the sums of each concept's best features, those of the largest mean scores.
--
-- Of candidates.sql what is best, ties as in best_scores.sql: what is kept of it.
--
-- Relations: candidates and best_scores, the results of the files of these names.
-- Parameters: none.
-- Columns: as concept_sums.sql.
with
best as (
    select distinct
        concept,
        feature
    from best_scores
),

final as (
    select
        candidates.concept,
        candidates.step,
        candidates.timestep,
        candidates.feature,
        candidates."sum",
        candidates.n_samples,
        candidates.sum_all_features
    from candidates
    inner join best on candidates.concept = best.concept and candidates.feature = best.feature
    order by candidates.concept, candidates.step, candidates.feature
)

select * from final
