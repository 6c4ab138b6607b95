-- dead_features: the latents that fired in no encoded sample.
--
-- Relations: feature_steps.
-- Parameters: $sae, $branch, $n_latents.
-- Columns: feature.
with
fired as (
    select distinct feature from feature_steps
    where sae = $sae and branch = $branch
),

latents as (
    select numbers.feature::integer as feature from unnest(range($n_latents)) as numbers (feature)
),

final as (
    select latents.feature
    from latents
    left join fired on latents.feature = fired.feature
    where fired.feature is null
    order by latents.feature
)

select * from final
