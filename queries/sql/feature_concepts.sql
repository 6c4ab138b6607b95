-- feature_concepts: how strongly and how often a feature is active for every concept, by step.
--
-- Relations: feature_masks, feature_sums, codes, saes, labels.
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

masks as (
    select
        sample_id,
        first_step,
        steps,
        later_steps
    from feature_masks
    where sae = $sae and branch = $branch and feature = $feature
),

encoded_rows as (
    select
        encoded.sample_id,
        encoded.step,
        encoded.timestep,
        (
            case
                when encoded.step % 120 < 60 then coalesce(masks.steps, 0)
                else coalesce(masks.later_steps, 0)
            end >> (encoded.step % 60)
        ) & 1 as is_active
    from encoded
    left join masks
        on
            encoded.sample_id = masks.sample_id
            and encoded.step - encoded.step % 120 = masks.first_step
),

counts as (
    select
        labels.family,
        labels.concept,
        encoded_rows.step,
        min(encoded_rows.timestep) as timestep,
        count(*) as n_samples,
        sum(encoded_rows.is_active) as n_active
    from encoded_rows
    inner join labels on encoded_rows.sample_id = labels.sample_id
    group by labels.family, labels.concept, encoded_rows.step
),

concept_sums as (
    select
        family,
        concept,
        step,
        "sum" as feature_sum
    from feature_sums
    where sae = $sae and branch = $branch and feature = $feature
),

final as (
    select
        counts.family,
        counts.concept,
        counts.step,
        counts.timestep,
        counts.n_samples,
        counts.n_active / counts.n_samples as density,
        coalesce(concept_sums.feature_sum, 0) / counts.n_samples / map_positions as mean
    from counts
    cross join sizes
    left join concept_sums
        on
            counts.family = concept_sums.family
            and counts.concept = concept_sums.concept
            and counts.step = concept_sums.step
    order by counts.family, counts.concept, counts.step
)

select * from final
