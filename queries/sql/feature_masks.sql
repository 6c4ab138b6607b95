-- feature_masks: at which steps a feature fired in which sample, as bits of two whole numbers.
--
-- A number holds 60 steps (so that it is never negative): of steps, the bit of first_step + n has
-- the value 2^n; later_steps has the 60 after them. Two features fire together in as many rows as
-- their numbers have bits in common, so what fires with a feature is found without statistics.
--
-- Relations: stats.
-- Parameters: $sae, $branch, $first_feature, $last_feature.
-- Columns: as the table feature_masks (docs/format.md, section 1.5).
with
fired as (
    select
        feature,
        sample_id,
        step - step % 120 as first_step,
        case when step % 120 < 60 then 1::bigint << (step % 60) else 0::bigint end as bit,
        case when step % 120 < 60 then 0::bigint else 1::bigint << (step % 60) end as later_bit
    from stats
    where
        sae = $sae
        and branch = $branch
        and feature between $first_feature and $last_feature
),

final as (
    select
        $branch as branch,
        feature,
        sample_id,
        first_step,
        bit_or(bit) as steps,
        bit_or(later_bit) as later_steps
    from fired
    group by feature, sample_id, first_step
    order by feature, sample_id, first_step
)

select * from final
