-- mean_bounds: between what the mean scores of each concept and feature lie, from sums alone.
--
-- With a(c,t) = 1 / (sum of all features in c, + delta) and b(c,t) = 1 / (that in the other
-- concepts, + delta), a mean score over the steps is the mean of sum(f,t,c) * (a + b) - total(f,t)
-- * b. The first term needs the concept's own rows alone. Of the second, with least(t) the smallest
-- b(c,t) of a step, b(c,t) lies between least(t) times the smallest and times the largest
-- b(c,t) / least(t) of the concept; so one number for each feature bounds it from both sides.
--
-- Relations: sums and totals, the results of sums.sql and totals.sql.
-- Parameters: $sae, $branch, $family, $concept (null: all), $first_step, $last_step,
-- $map_positions, $delta.
-- Columns: concept, feature, lower_bound and upper_bound (the mean lies between them; both leave
-- room for what rounding can change).
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
        feature,
        total,
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
        coalesce(gain, 0) as gain,
        loss * smallest_ratio as least_loss,
        loss * largest_ratio as largest_loss
    from ratios
    cross join losses
    left join gains on ratios.concept = gains.concept and losses.feature = gains.feature
),

steps as (
    select count(*) as n_steps from step_totals
),

final as (
    select
        concept,
        feature,
        (gain - largest_loss - 1e-12 * (gain + largest_loss)) / n_steps as lower_bound,
        (gain - least_loss + 1e-12 * (gain + least_loss)) / n_steps as upper_bound
    from bounds
    cross join steps
    order by concept, feature
)

select * from final
