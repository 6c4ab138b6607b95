-- candidates: the sums of the features whose mean scores can be a concept's best, found without the
-- other scores.
--
-- A feature can be among the $top best of a concept if the upper bound of its mean score reaches
-- the $top-th largest lower bound, or misses it by no more than what two means may differ by that
-- count as equal (they agree to 12 decimals). It has a row at each step at which it fired in any
-- concept, with sum 0 where it did not in this one.
--
-- Relations: members, mean_bounds, concept_sums and feature_totals, the results of the files of
-- these names.
-- Parameters: $top.
-- Columns: as concept_sums.sql.
with
reached as (
    select
        concept,
        list_min(max_by(lower_bound, lower_bound, $top)) as bound
    from mean_bounds
    group by concept
),

chosen as (
    select
        mean_bounds.concept,
        mean_bounds.feature
    from mean_bounds
    inner join reached on mean_bounds.concept = reached.concept
    where upper_bound >= bound - 2e-12
),

own_sums as (
    select
        concept_sums.concept,
        concept_sums.step,
        concept_sums.feature,
        concept_sums."sum"
    from concept_sums
    inner join chosen
        on concept_sums.concept = chosen.concept and concept_sums.feature = chosen.feature
),

final as (
    select
        chosen.concept,
        feature_totals.step,
        feature_totals.timestep,
        chosen.feature,
        coalesce(own_sums."sum", 0) as "sum",
        members.n_samples,
        members.sum_all_features
    from chosen
    inner join feature_totals on chosen.feature = feature_totals.feature
    inner join members
        on chosen.concept = members.concept and feature_totals.step = members.step
    left join own_sums
        on
            chosen.concept = own_sums.concept
            and feature_totals.step = own_sums.step
            and chosen.feature = own_sums.feature
    order by chosen.concept, feature_totals.step, chosen.feature
)

select * from final
