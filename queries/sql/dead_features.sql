-- dead_features: the latents that fired in no encoded sample.
--
-- Relations: stats.
-- Parameters: $sae, $branch, $n_latents.
-- Columns: feature.
with
fired as (
    select distinct feature from stats where sae = $sae and branch = $branch
),
final as (
    select latents.feature::integer as feature
    from range($n_latents) as latents(feature)
    left join fired on fired.feature = latents.feature
    where fired.feature is null
    order by feature
)
select * from final
