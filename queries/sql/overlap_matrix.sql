-- overlap_matrix: how much the selections of every two concepts share, all steps together.
--
-- A selection is that of selection.sql with $top: at each step the n largest positive scores, ties
-- to the smaller feature. What is shared are pairs of a step and a feature.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $top.
-- Columns: concept, other_concept, n_concept, n_other, n_both, jaccard (null where neither selects
-- anything).
with
best_of_step as (
    select
        concept,
        step,
        max_by(feature, struct_pack(score := score, smaller_first := -feature), $top) as features
    from importance
    where score > 0
    group by concept, step
),

chosen as (
    select
        concept,
        step,
        unnest(features) as feature
    from best_of_step
),

names as (
    select distinct concept from importance
),

sizes as (
    select
        names.concept,
        count(chosen.feature) as n
    from names
    left join chosen on names.concept = chosen.concept
    group by names.concept
),

shared as (
    select
        chosen.concept,
        also_chosen.concept as other_concept,
        count(*) as n_both
    from chosen
    inner join chosen as also_chosen
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
