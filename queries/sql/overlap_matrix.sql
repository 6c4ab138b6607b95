-- overlap_matrix: how much the selections of every two concepts share, all steps together.
--
-- What is shared are pairs of a step and a feature.
--
-- Relations: chosen_features and importance, the results of those files.
-- Columns: concept, other_concept, n_concept, n_other, n_both, jaccard (null where neither selects
-- anything).
with
names as (
    select distinct concept from importance
),

sizes as (
    select
        names.concept,
        count(chosen_features.feature) as n
    from names
    left join chosen_features on names.concept = chosen_features.concept
    group by names.concept
),

shared as (
    select
        chosen.concept,
        also_chosen.concept as other_concept,
        count(*) as n_both
    from chosen_features as chosen
    inner join chosen_features as also_chosen
        on chosen.step = also_chosen.step and chosen.feature = also_chosen.feature
    group by chosen.concept, also_chosen.concept
),

final as (
    select
        sizes.concept,
        other_sizes.concept as other_concept,
        sizes.n as n_concept,
        other_sizes.n as n_other,
        coalesce(n_both, 0) as n_both,
        case
            when sizes.n + other_sizes.n > 0
                then coalesce(n_both, 0)::double / (sizes.n + other_sizes.n - coalesce(n_both, 0))
        end as jaccard
    from sizes
    cross join sizes as other_sizes
    left join shared
        on sizes.concept = shared.concept and other_sizes.concept = shared.other_concept
    order by sizes.concept, other_sizes.concept
)

select * from final
