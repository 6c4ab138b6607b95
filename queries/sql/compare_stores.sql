-- compare_stores: the features whose mean differs most between two stores, as after an ablation.
--
-- Both stores are encoded with the same SAE.
--
-- Relations: stats, codes, saes, and other_stats and other_codes: those of the other store.
-- Parameters: $sae, $branch, $top.
-- Columns: feature, density, other_density (share of the rows in which it fired), mean, other_mean
-- (over rows and positions), change (other_mean - mean).
with
fired as (
    select
        feature,
        count(*) as n_fired,
        sum("sum"::double) as total
    from stats
    where sae = $sae and branch = $branch
    group by feature
),

other_fired as (
    select
        feature,
        count(*) as n_fired,
        sum("sum"::double) as total
    from other_stats
    where sae = $sae and branch = $branch
    group by feature
),

encoded as (
    select count(*) as n_rows
    from codes
    where sae = $sae and branch = $branch
),

other_encoded as (
    select count(*) as n_other_rows
    from other_codes
    where sae = $sae and branch = $branch
),

maps as (
    select max(map_positions) as map_positions
    from saes
    where sae = $sae
),

sizes as (
    select
        encoded.n_rows,
        other_encoded.n_other_rows,
        maps.map_positions
    from encoded
    cross join other_encoded
    cross join maps
),

compared as (
    select
        coalesce(fired.feature, other_fired.feature) as feature,
        coalesce(fired.n_fired, 0) / n_rows as density,
        coalesce(other_fired.n_fired, 0) / n_other_rows as other_density,
        coalesce(fired.total, 0) / n_rows / map_positions as mean,
        coalesce(other_fired.total, 0) / n_other_rows / map_positions as other_mean
    from fired
    full join other_fired on fired.feature = other_fired.feature
    cross join sizes
),

final as (
    select
        *,
        other_mean - mean as change
    from compared
    order by abs(other_mean - mean) desc, feature
    limit $top
)

select * from final
