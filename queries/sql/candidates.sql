-- candidates: the pairs of pairs.sql of which the best mean scores can be, found without the rest.
--
-- A feature can be among the $top best of a concept if the upper bound of its mean score reaches
-- the $top-th largest lower bound, or misses it by no more than what two means may differ by that
-- count as equal (they agree to 12 decimals).
--
-- Relations: members and mean_bounds, the results of members.sql and mean_bounds.sql; sums, totals.
-- Parameters: $sae, $branch, $family, $first_step, $last_step, $map_positions, $top.
-- Columns: as pairs.sql.
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

concept_sums as not materialized (
    select
        concept,
        step,
        feature,
        "sum" as feature_sum
    from sums
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
),

feature_totals as (
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
),

own_sums as (
    select
        concept_sums.concept,
        concept_sums.step,
        concept_sums.feature,
        concept_sums.feature_sum
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
        coalesce(feature_sum, 0) / members.n_samples / $map_positions as mean_concept,
        greatest(total - coalesce(feature_sum, 0), 0) as sum_other,
        members.n_samples as n_concept,
        feature_totals.n_samples - members.n_samples as n_other,
        members.sum_all_features as sum_all_concept,
        total_all_features - members.sum_all_features as sum_all_other,
        mean_all
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
