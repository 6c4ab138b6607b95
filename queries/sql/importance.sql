-- importance: how much each feature belongs to each concept of a family, step by step.
--
-- score(i,t,c) = mu(i,t,D_c) / (sum_j mu(j,t,D_c) + delta)
--              - mu(i,t,D_other) / (sum_j mu(j,t,D_other) + delta)
-- (SAeUron, arXiv 2501.18052, section 3). mu is the mean over samples of the mean over positions,
-- absent codes counting as 0; D_other pools the samples of all other concepts. A sample without a
-- label belongs to neither.
--
-- Relations: pairs, the result of pairs.sql, or of chosen_pairs.sql.
-- Parameters: $branch, $family, $map_positions, $delta.
-- Columns: as the table scores (docs/format.md), and share_concept and share_other, the two terms
-- of the score; a row for each of pairs.
with
means as (
    select
        concept,
        step,
        timestep,
        feature,
        mean_concept,
        mean_all,
        sum_other / n_other / $map_positions as mean_other,
        sum_all_concept / n_concept / $map_positions as sum_of_means_concept,
        sum_all_other / n_other / $map_positions as sum_of_means_other
    from pairs
),

shares as (
    select
        *,
        mean_concept / (sum_of_means_concept + $delta) as share_concept,
        mean_other / (sum_of_means_other + $delta) as share_other
    from means
),

final as (
    select
        $family as family,
        concept,
        $branch as branch,
        step,
        timestep,
        feature,
        share_concept - share_other as score,
        mean_concept,
        mean_other,
        mean_all,
        share_concept,
        share_other
    from shares
    order by concept, step, feature
)

select * from final
