-- concepts: the concepts of every family, and how many of their samples are encoded.
--
-- Relations: labels, codes.
-- Parameters: $sae, $branch.
-- Columns: family, concept, n_samples, n_encoded.
with
encoded as (
    select distinct sample_id from codes
    where sae = $sae and branch = $branch
),

final as (
    select
        labels.family,
        labels.concept,
        count(*) as n_samples,
        count(encoded.sample_id) as n_encoded
    from labels
    left join encoded on labels.sample_id = encoded.sample_id
    group by labels.family, labels.concept
    order by family, concept
)

select * from final
