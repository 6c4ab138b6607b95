-- bootstrap: the scores of a concept's best features with confidence intervals over samples.
--
-- In each replicate the samples of every concept are drawn anew, as many as there are, with replacement, and the published score is computed again;
-- the interval is that of the replicates' scores between the (1 ± level) / 2 quantiles, linearly interpolated (Efron 1979).
--
-- Relations: importance, stats, labelled, and resamples(replicate, sample_id, weight): how often a replicate has drawn a sample.
-- Parameters: $sae, $branch, $concept, $top, $level, $map_positions, $delta.
-- Columns: step, timestep, feature, score (of all samples), low, high.
with
ranked as (
    select *, row_number() over (partition by step order by score desc, feature) as place
    from importance
    where concept = $concept and score > 0
),
chosen as (
    select step, timestep, feature, score from ranked where place <= $top
),
drawn as (
    select replicate, sample_id, weight, case when concept = $concept then 1 else 0 end as is_mine
    from resamples
    join labelled using (sample_id)
),
sizes as (
    select replicate, is_mine, sum(weight) as n from drawn group by replicate, is_mine
),
fired as (
    select sample_id, step, feature, "sum"::double as total from stats where sae = $sae and branch = $branch
),
rows_total as (
    select sample_id, step, sum(total) as total from fired group by sample_id, step
),
steps_total as (
    select replicate, is_mine, step, sum(weight * total) as total
    from rows_total
    join drawn using (sample_id)
    group by replicate, is_mine, step
),
chosen_rows as (
    select sample_id, step, feature, total
    from fired
    semi join chosen using (step, feature)
),
features_total as (
    select replicate, is_mine, step, feature, sum(weight * total) as total
    from chosen_rows
    join drawn using (sample_id)
    group by replicate, is_mine, step, feature
),
shares as (
    select
        sizes.replicate,
        chosen.step,
        chosen.feature,
        case when sizes.is_mine = 1 then 1 else -1 end
        * (coalesce(features_total.total, 0) / n / $map_positions)
        / (coalesce(steps_total.total, 0) / n / $map_positions + $delta) as share
    from chosen
    cross join sizes
    left join steps_total
        on steps_total.replicate = sizes.replicate
        and steps_total.is_mine = sizes.is_mine
        and steps_total.step = chosen.step
    left join features_total
        on features_total.replicate = sizes.replicate
        and features_total.is_mine = sizes.is_mine
        and features_total.step = chosen.step
        and features_total.feature = chosen.feature
),
replicates as (
    select replicate, step, feature, sum(share) as score from shares group by replicate, step, feature
),
intervals as (
    select
        step,
        feature,
        percentile_cont((1 - $level) / 2) within group (order by score) as low,
        percentile_cont((1 + $level) / 2) within group (order by score) as high
    from replicates
    group by step, feature
),
final as (
    select step, timestep, feature, score, low, high
    from chosen
    join intervals using (step, feature)
    order by step, score desc, feature
)
select * from final
