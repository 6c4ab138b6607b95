-- largest_sums: the sums of the features that a concept has most of, $looked at each step.
--
-- Of equal sums any may be left out: they are where to look first for what scores most.
--
-- Relations: concept_sums, the result of concept_sums.sql.
-- Parameters: $concept (null: all), $looked.
-- Columns: as concept_sums.sql.
with
largest as (
    select
        concept,
        step,
        max(timestep) as timestep,
        max(n_samples) as n_samples,
        max(sum_all_features) as sum_all_features,
        max_by(struct_pack(feature := feature, feature_sum := "sum"), "sum", $looked) as entries
    from concept_sums
    where $concept is null or concept = $concept
    group by concept, step
),

listed as (
    select
        concept,
        step,
        timestep,
        n_samples,
        sum_all_features,
        unnest(entries) as entry
    from largest
),

final as (
    select
        listed.concept,
        listed.step,
        listed.timestep,
        entry.feature as feature,
        entry.feature_sum as "sum",
        listed.n_samples,
        listed.sum_all_features
    from listed
    order by listed.concept, listed.step, entry.feature
)

select * from final
