-- compare_saes: for each feature of an SAE the most similar one of another SAE of the same store.
--
-- Similarity is the cosine of the features' sums over the map, as vectors over the rows (sample and
-- step) that both SAEs have encoded.
--
-- Relations: stats, codes.
-- Parameters: $sae, $other_sae, $branch.
-- Columns: feature, other_feature (of equally similar ones the smallest), cosine; a feature without
-- any common row is left out.
with
common as (
    select
        mine.sample_id,
        mine.step
    from codes as mine
    inner join codes as other on mine.sample_id = other.sample_id and mine.step = other.step
    where
        mine.sae = $sae
        and other.sae = $other_sae
        and mine.branch = $branch
        and other.branch = $branch
),

mine as (
    select
        sample_id,
        step,
        feature,
        "sum"::double as total
    from stats
    semi join common using (sample_id, step)
    where sae = $sae and branch = $branch
),

other as (
    select
        sample_id,
        step,
        feature,
        "sum"::double as total
    from stats
    semi join common using (sample_id, step)
    where sae = $other_sae and branch = $branch
),

norms as (
    select
        feature,
        sqrt(sum(total * total)) as norm
    from mine
    group by feature
),

other_norms as (
    select
        feature,
        sqrt(sum(total * total)) as norm
    from other
    group by feature
),

products as (
    select
        mine.feature,
        other.feature as other_feature,
        sum(mine.total * other.total) as product
    from mine
    inner join other on mine.sample_id = other.sample_id and mine.step = other.step
    group by mine.feature, other.feature
),

similarities as (
    select
        products.feature,
        products.other_feature,
        product / (norms.norm * other_norms.norm) as cosine
    from products
    inner join norms on products.feature = norms.feature
    inner join other_norms on products.other_feature = other_norms.feature
),

ranked as (
    select
        *,
        row_number() over (partition by feature order by cosine desc, other_feature) as place
    from similarities
),

final as (
    select
        feature,
        other_feature,
        cosine
    from ranked
    where place = 1
    order by feature
)

select * from final
