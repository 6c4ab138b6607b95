-- mean_bounds: between what the mean scores of each concept and feature lie, from few numbers.
--
-- With a(c,t) = 1 / (sum of all features in c, + delta) and b(c,t) = 1 / (that in the other
-- concepts, + delta), a mean score over all steps is the mean of
-- sum(f,t,c) * (a + b) - total(f,t) * b. Of the first term, a + b lies between its least and its
-- largest value over the steps at which anything fired in the concept, so the sum of the feature in
-- the concept's samples, all steps together, bounds it from both sides. Of the second, with
-- least(t) the smallest b(c,t) of a step, b(c,t) lies between least(t) times the smallest and times
-- the largest b(c,t) / least(t) of the concept; so one number for each feature bounds it, too.
--
-- Relations: feature_samples; labelled(sample_id, concept): the encoded samples of the family;
-- members and feature_totals, the results of members.sql and feature_totals.sql.
-- Parameters: $sae, $branch, $concept (null: all), $map_positions, $delta.
-- Columns: concept, feature, lower_bound and upper_bound (the mean lies between them; both leave
-- room for what rounding can change, 1e-10 of what they are the difference of).
with
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
        sum_all_features > 0 as fired,
        1 / (sum_all_features + $delta * n_samples * $map_positions) as own,
        1 / (sum_all - sum_all_features + $delta * (n_all - n_samples) * $map_positions) as others
    from members
    inner join step_totals on members.step = step_totals.step
    where $concept is null or members.concept = $concept
),

smallest as (
    select
        step,
        min(others) as others
    from factors
    group by step
),

ranges as (
    select
        factors.concept,
        min(case when fired then factors.own + factors.others end) as least_factor,
        max(case when fired then factors.own + factors.others end) as largest_factor,
        min(factors.others / smallest.others) as smallest_ratio,
        max(factors.others / smallest.others) as largest_ratio
    from factors
    inner join smallest on factors.step = smallest.step
    group by factors.concept
),

concept_sums as (
    select
        labelled.concept,
        feature_samples.feature,
        sum(feature_samples."sum") as feature_sum
    from feature_samples
    inner join labelled on feature_samples.sample_id = labelled.sample_id
    where
        feature_samples.sae = $sae
        and feature_samples.branch = $branch
        and ($concept is null or labelled.concept = $concept)
    group by labelled.concept, feature_samples.feature
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
        ranges.concept,
        losses.feature,
        coalesce(feature_sum * least_factor, 0) as least_gain,
        coalesce(feature_sum * largest_factor, 0) as largest_gain,
        loss * smallest_ratio as least_loss,
        loss * largest_ratio as largest_loss
    from ranges
    cross join losses
    left join concept_sums
        on ranges.concept = concept_sums.concept and losses.feature = concept_sums.feature
),

steps as (
    select count(*) as n_steps from step_totals
),

final as (
    select
        concept,
        feature,
        (least_gain - largest_loss - 1e-10 * (least_gain + largest_loss)) / n_steps as lower_bound,
        (largest_gain - least_loss + 1e-10 * (largest_gain + least_loss)) / n_steps as upper_bound
    from bounds
    cross join steps
    order by concept, feature
)

select * from final
