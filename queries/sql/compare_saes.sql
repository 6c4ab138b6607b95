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
        codes.sample_id,
        codes.step
    from codes
    inner join codes as other_codes
        on codes.sample_id = other_codes.sample_id and codes.step = other_codes.step
    where
        codes.sae = $sae
        and other_codes.sae = $other_sae
        and codes.branch = $branch
        and other_codes.branch = $branch
),

fired as (
    select
        sample_id,
        step,
        feature,
        "sum"::double as total
    from stats
    semi join common using (sample_id, step)
    where sae = $sae and branch = $branch
),

other_fired as (
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
    from fired
    group by feature
),

other_norms as (
    select
        feature,
        sqrt(sum(total * total)) as norm
    from other_fired
    group by feature
),

products as (
    select
        fired.feature,
        other_fired.feature as other_feature,
        sum(fired.total * other_fired.total) as product
    from fired
    inner join other_fired
        on fired.sample_id = other_fired.sample_id and fired.step = other_fired.step
    group by fired.feature, other_fired.feature
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
        row_number() over (
            partition by feature order by cosine desc, other_feature
        ) as similarity_rank
    from similarities
),

final as (
    select
        feature,
        other_feature,
        cosine
    from ranked
    where similarity_rank = 1
    order by feature
)

select * from final
