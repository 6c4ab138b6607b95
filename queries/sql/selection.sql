-- selection: the features of a concept, step by step.
--
-- Either the $top features with the largest positive scores, or those whose score is strictly above
-- the $percentile of all $n_latents scores of the step, linearly interpolated (SAeUron, arXiv
-- 2501.18052). Of equal scores the smaller feature comes first. A feature without a row scores 0.
-- $only_positive leaves out scores that are not positive: none of them is chosen, and they decide
-- nothing, where the percentile is positive.
--
-- Relations: importance and feature_totals, the results of the files of these names.
-- Parameters: $concept (null: all), $n_latents, $only_positive, and one of $top and $percentile;
-- the other is null.
-- Columns: concept, step, timestep, feature, score, mean_concept, mean_other, mean_all.
with
scored as (
    select
        concept,
        step,
        timestep,
        feature,
        score,
        mean_concept,
        mean_other,
        mean_all
    from importance
    where
        ($concept is null or concept = $concept)
        and (not $only_positive or score > 0)
),

fired as (
    select
        step,
        feature
    from feature_totals
),

latents as (
    select numbers.feature::integer as feature from unnest(range($n_latents)) as numbers (feature)
),

-- Where the percentile lies among the ascending scores, counted from 0.
ranks as (
    select coalesce($percentile, 50) / 100 * ($n_latents - 1) as percentile_rank
),

-- The largest scores: as many as are wanted, or down to the lower neighbour of the percentile.
best as (
    select
        concept,
        step,
        min(timestep) as timestep,
        count(*) as n_scored,
        max_by(
            struct_pack(
                feature := feature,
                score := score,
                mean_concept := mean_concept,
                mean_other := mean_other,
                mean_all := mean_all
            ),
            struct_pack(score := score, smaller_first := -feature),
            coalesce(
                $top, $n_latents - floor(coalesce($percentile, 50) / 100 * ($n_latents - 1))
            )::integer
        ) as entries
    from scored
    group by concept, step
),

listed as (
    select
        concept,
        step,
        timestep,
        n_scored,
        unnest(entries) as entry
    from best
),

-- Features without a row score 0: they stand before the negative ones.
ranked as (
    select
        listed.concept,
        listed.step,
        listed.timestep,
        entry.feature as feature,
        entry.score as score,
        entry.mean_concept as mean_concept,
        entry.mean_other as mean_other,
        entry.mean_all as mean_all,
        row_number() over (
            partition by listed.concept, listed.step order by entry.score desc, entry.feature
        ) + case when entry.score < 0 then $n_latents - listed.n_scored else 0 end as score_rank
    from listed
),

neighbours as (
    select
        ranked.concept,
        ranked.step,
        min(ranked.timestep) as timestep,
        max(case when score_rank = $n_latents - floor(percentile_rank) then score end) as low,
        max(case when score_rank = $n_latents - ceil(percentile_rank) then score end) as high,
        max(percentile_rank - floor(percentile_rank)) as weight
    from ranked
    cross join ranks
    group by ranked.concept, ranked.step
),

-- Interpolated from the nearer end, as torch.lerp does: quantile_cont rounds otherwise, which
-- decides between scores that are all but tied.
thresholds as (
    select
        concept,
        step,
        timestep,
        case
            when $top is not null then 0
            when weight < 0.5
                then coalesce(low, 0) + weight * (coalesce(high, 0) - coalesce(low, 0))
            else coalesce(high, 0) - (coalesce(high, 0) - coalesce(low, 0)) * (1 - weight)
        end as threshold
    from neighbours
),

above as (
    select
        ranked.concept,
        ranked.step,
        ranked.timestep,
        ranked.feature,
        ranked.score,
        ranked.mean_concept,
        ranked.mean_other,
        ranked.mean_all
    from ranked
    inner join thresholds
        on ranked.concept = thresholds.concept and ranked.step = thresholds.step
    where ranked.score > thresholds.threshold
),

zeros_above as (
    select
        thresholds.concept,
        thresholds.step,
        thresholds.timestep,
        latents.feature,
        0::double as score,
        0::double as mean_concept,
        0::double as mean_other,
        0::double as mean_all
    from thresholds
    cross join latents
    left join fired
        on thresholds.step = fired.step and latents.feature = fired.feature
    where not $only_positive and thresholds.threshold < 0 and fired.feature is null
),

chosen as (
    select * from above
    union all
    select * from zeros_above
),

final as (
    select
        concept,
        step,
        timestep,
        feature,
        score,
        mean_concept,
        mean_other,
        mean_all
    from chosen
    order by concept, step, score desc, feature
)

select * from final
