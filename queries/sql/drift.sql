-- drift: whether a feature means the same samples at every step.
--
-- At each step a feature is a vector over the samples, its sum over the map; compared are the
-- directions of these vectors.
--
-- Relations: stats, codes, saes.
-- Parameters: $sae, $branch, $feature.
-- Columns: step, timestep, mean (over samples and positions), similarity_to_previous (cosine with
-- the step before; null where it is silent at either), similarity_to_peak (cosine with the step of
-- the largest mean, of several the first).
with
sizes as (
    select map_positions
    from saes
    where sae = $sae
),

fired as (
    select
        sample_id,
        step,
        "sum"::double as total
    from stats
    where sae = $sae and branch = $branch and feature = $feature
),

steps as (
    select
        step,
        min(timestep) as timestep,
        count(*) as n_rows
    from codes
    where sae = $sae and branch = $branch
    group by step
),

norms as (
    select
        step,
        sum(total) as total,
        sqrt(sum(total * total)) as norm
    from fired
    group by step
),

means as (
    select
        steps.step,
        steps.timestep,
        coalesce(total, 0) / n_rows / map_positions as mean,
        norm
    from steps
    left join norms on steps.step = norms.step
    cross join sizes
),

ranked as (
    select
        *,
        row_number() over (order by mean desc, step) as mean_rank
    from means
),

peak as (
    select
        step,
        norm
    from ranked
    where mean_rank = 1
),

with_previous as (
    select
        now.step,
        sum(now.total * before.total) as product
    from fired as now
    inner join fired as before on now.sample_id = before.sample_id and before.step = now.step - 1
    group by now.step
),

with_peak as (
    select
        now.step,
        sum(now.total * best.total) as product
    from fired as now
    inner join fired as best on now.sample_id = best.sample_id
    inner join peak on best.step = peak.step
    group by now.step
),

final as (
    select
        means.step,
        means.timestep,
        means.mean,
        case
            when means.norm * before.norm > 0
                then coalesce(with_previous.product, 0) / (means.norm * before.norm)
        end as similarity_to_previous,
        case
            when means.norm * peak.norm > 0
                then coalesce(with_peak.product, 0) / (means.norm * peak.norm)
        end as similarity_to_peak
    from means
    left join means as before on before.step = means.step - 1
    left join with_previous on means.step = with_previous.step
    left join with_peak on means.step = with_peak.step
    cross join peak
    order by step
)

select * from final
