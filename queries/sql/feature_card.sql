-- feature_card: a feature in all samples, in each concept's, and where there is most of it.
--
-- Relations: feature_samples, codes, saes, labels.
-- Parameters: $sae, $branch, $feature, $top (samples), $unit.
-- Columns: what (all, concept or sample), family (of a concept), name (the concept, or the
-- sample_id), n_rows (samples × steps), density (share of the rows in which it fired),
-- position_density (share of the positions), mean (over rows and positions), max.
with
sizes as (
    select map_positions
    from saes
    where sae = $sae
),

encoded as (
    select
        sample_id,
        count(*) as n_rows
    from codes
    where sae = $sae and branch = $branch
    group by sample_id
),

fired as (
    select
        sample_id,
        ("sum" * $unit)::decimal(38, 0) as units,
        "max" as highest,
        n_steps,
        n_positions
    from feature_samples
    where sae = $sae and branch = $branch and feature = $feature
),

encoded_rows as (
    select
        encoded.sample_id,
        encoded.n_rows,
        coalesce(fired.n_steps, 0) as n_active,
        coalesce(fired.units, 0) as units,
        coalesce(fired.highest, 0) as highest,
        coalesce(fired.n_positions, 0) as n_positions
    from encoded
    left join fired on encoded.sample_id = fired.sample_id
),

members as (
    select
        0 as ordinal,
        'all' as what,
        '' as family,
        '' as name,
        sample_id
    from encoded
    union all
    select
        1 as ordinal,
        'concept' as what,
        family,
        concept as name,
        sample_id
    from labels
    union all
    select
        2 as ordinal,
        'sample' as what,
        '' as family,
        sample_id::varchar as name,
        sample_id
    from encoded
),

measured as (
    select
        ordinal,
        what,
        family,
        name,
        sum(n_rows) as n_rows,
        sum(n_active) / sum(n_rows) as density,
        sum(n_positions) / sum(n_rows) / max(map_positions) as position_density,
        sum(units)::double / $unit / sum(n_rows) / max(map_positions) as mean,
        max(highest) as "max"
    from encoded_rows
    inner join members using (sample_id)
    cross join sizes
    group by ordinal, what, family, name
),

ranked as (
    select
        *,
        row_number() over (
            partition by what order by case when what = 'sample' then -mean else 0 end, family, name
        ) as mean_rank
    from measured
),

final as (
    select
        what,
        family,
        name,
        n_rows,
        density,
        position_density,
        mean,
        "max"
    from ranked
    where what <> 'sample' or (mean_rank <= $top and density > 0)
    order by ordinal, mean_rank
)

select * from final
