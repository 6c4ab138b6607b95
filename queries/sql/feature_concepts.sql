-- feature_concepts: how strongly and how often a feature is active for every concept, by step.
--
-- Relations: stats, codes, saes, labels.
-- Parameters: $sae, $branch, $feature.
-- Columns: family, concept, step, timestep, n_samples (encoded ones of the concept), density (share
-- of them in which it fired), mean (over samples and positions: mu of importance.sql).
with
sizes as (
    select map_positions
    from saes
    where sae = $sae
),

encoded as (
    select
        sample_id,
        step,
        timestep
    from codes
    where sae = $sae and branch = $branch
),

fired as (
    select
        sample_id,
        step,
        "sum"::double as total
    from stats
    where sae = $sae and branch = $branch and feature = $feature
),

encoded_rows as (
    select
        encoded.sample_id,
        encoded.step,
        encoded.timestep,
        coalesce(fired.total, 0) as total,
        case when fired.total is null then 0 else 1 end as is_active
    from encoded
    left join fired on encoded.sample_id = fired.sample_id and encoded.step = fired.step
),

final as (
    select
        labels.family,
        labels.concept,
        encoded_rows.step,
        min(encoded_rows.timestep) as timestep,
        count(*) as n_samples,
        sum(encoded_rows.is_active) / count(*) as density,
        sum(encoded_rows.total) / count(*) / max(map_positions) as mean
    from encoded_rows
    inner join labels on encoded_rows.sample_id = labels.sample_id
    cross join sizes
    group by labels.family, labels.concept, encoded_rows.step
    order by labels.family, labels.concept, encoded_rows.step
)

select * from final
