-- selection: the features of one concept, step by step.
--
-- Either the $top features with the largest positive scores (ties: the smaller feature first), or those whose score is strictly above the
-- $percentile of all $n_latents scores of the step, linearly interpolated (SAeUron, arXiv 2501.18052); a feature without a row scores 0.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $concept, $n_latents, and one of $top and $percentile; the other is null.
-- Columns: step, timestep, feature, score, mean_concept, mean_other, mean_all.
with
scored as (
    select step, timestep, feature, score, mean_concept, mean_other, mean_all from importance where concept = $concept
),
steps as (
    select distinct step, timestep from scored
),
latents as (
    select numbers.feature::integer as feature from unnest(range($n_latents)) as numbers(feature)
),
every as (
    select
        steps.step,
        steps.timestep,
        latents.feature,
        coalesce(scored.score, 0) as score,
        coalesce(scored.mean_concept, 0) as mean_concept,
        coalesce(scored.mean_other, 0) as mean_other,
        coalesce(scored.mean_all, 0) as mean_all
    from steps
    cross join latents
    left join scored on scored.step = steps.step and scored.feature = latents.feature
),
ranked as (
    select *, row_number() over (partition by step order by score desc, feature) as place from every
),
-- Where the percentile lies among the ascending scores, counted from 0.
ranks as (
    select coalesce($percentile, 50) / 100 * ($n_latents - 1) as rank
),
neighbours as (
    select
        step,
        max(score) filter (place = $n_latents - floor(rank)) as low,
        max(score) filter (place = $n_latents - ceil(rank)) as high,
        any_value(rank - floor(rank)) as weight
    from ranked
    cross join ranks
    group by step
),
-- Interpolated from the nearer end, as torch.lerp does: quantile_cont rounds otherwise, which decides between scores that are all but tied.
thresholds as (
    select
        step,
        case when weight < 0.5 then low + weight * (high - low) else high - (high - low) * (1 - weight) end as threshold
    from neighbours
),
chosen as (
    select ranked.*
    from ranked
    join thresholds using (step)
    where case when $top is null then score > threshold else place <= $top and score > 0 end
),
final as (
    select step, timestep, feature, score, mean_concept, mean_other, mean_all
    from chosen
    order by step, score desc, feature
)
select * from final
