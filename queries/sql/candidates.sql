-- candidates: the pairs of pairs.sql of which the best mean scores can be, found without the rest.
--
-- With a(c,t) = 1 / (sum of all features in c, + delta) and b(c,t) = 1 / (that in the other
-- concepts, + delta), a mean score over the steps is the mean of sum(f,t,c) * (a + b) - total(f,t)
-- * b. The first term needs the concept's rows alone. Of the second, with least(t) the smallest
-- b(c,t) of a step, b(c,t) lies between least(t) times the smallest and times the largest
-- b(c,t) / least(t) of the concept; so one number for each feature bounds it from both sides. A
-- feature can be among the $top best of a concept if its upper bound reaches the $top-th largest
-- lower bound. Both give way by what rounding can change, and by what counts as equal (12
-- decimals of the mean).
--
-- Relations: sums and totals, the results of sums.sql and totals.sql.
-- Parameters: $sae, $branch, $family, $concept (null: all), $first_step, $last_step,
-- $map_positions, $delta, $top.
-- Columns: as pairs.sql.
with
concept_sums as not materialized (
    select
        concept,
        step,
        feature,
        "sum" as feature_sum,
        n_samples,
        sum_all_features
    from sums
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and ($concept is null or concept = $concept)
        and step between $first_step and $last_step
),

feature_totals as not materialized (
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

members as (
    select
        concept,
        step,
        max(n_samples) as n_concept,
        max(sum_all_features) as sum_all_concept
    from concept_sums
    group by concept, step
),

step_totals as (
    select
        step,
        max(n_samples) as n_all,
        max(total_all_features) as sum_all
    from feature_totals
    group by step
),

factors as (
    select
        members.concept,
        members.step,
        1 / (sum_all - sum_all_concept + $delta * (n_all - n_concept) * $map_positions) as others
    from members
    inner join step_totals on members.step = step_totals.step
),

smallest as (
    select
        step,
        min(others) as others
    from factors
    group by step
),

ratios as (
    select
        factors.concept,
        min(factors.others / smallest.others) as smallest_ratio,
        max(factors.others / smallest.others) as largest_ratio
    from factors
    inner join smallest on factors.step = smallest.step
    group by factors.concept
),

gains as (
    select
        concept_sums.concept,
        concept_sums.feature,
        sum(
            concept_sums.feature_sum / (
                concept_sums.sum_all_features + $delta * concept_sums.n_samples * $map_positions
            )
            + concept_sums.feature_sum / (
                step_totals.sum_all - concept_sums.sum_all_features
                + $delta * (step_totals.n_all - concept_sums.n_samples) * $map_positions
            )
        ) as gain
    from concept_sums
    inner join step_totals on concept_sums.step = step_totals.step
    group by concept_sums.concept, concept_sums.feature
),

losses as (
    select
        feature_totals.feature,
        sum(feature_totals.total * smallest.others) as loss
    from feature_totals
    inner join smallest on feature_totals.step = smallest.step
    group by feature_totals.feature
),

bounds as (
    select
        ratios.concept,
        losses.feature,
        coalesce(gain, 0) - loss * smallest_ratio as upper_bound,
        coalesce(gain, 0) - loss * largest_ratio as lower_bound,
        1e-12 * (coalesce(gain, 0) + loss * largest_ratio) as rounding
    from ratios
    cross join losses
    left join gains on ratios.concept = gains.concept and losses.feature = gains.feature
),

reached as (
    select
        concept,
        list_min(max_by(lower_bound - rounding, lower_bound - rounding, $top)) as bound
    from bounds
    group by concept
),

equal_scores as (
    select 2e-12 * count(*) as margin from step_totals
),

chosen as (
    select
        bounds.concept,
        bounds.feature
    from bounds
    inner join reached on bounds.concept = reached.concept
    cross join equal_scores
    where upper_bound + rounding + margin >= bound
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
        coalesce(feature_sum, 0) / n_concept / $map_positions as mean_concept,
        greatest(total - coalesce(feature_sum, 0), 0) as sum_other,
        n_concept,
        n_samples - n_concept as n_other,
        sum_all_concept,
        total_all_features - sum_all_concept as sum_all_other,
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
