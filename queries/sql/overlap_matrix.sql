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
ranked as (
    select
        concept,
        step,
        feature,
        row_number() over (partition by concept, step order by score desc, feature) as place
    from importance
    where score > 0
),

chosen as (
    select
        concept,
        step,
        feature
    from ranked
    where place <= $top
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
        mine.concept,
        other.concept as other_concept,
        count(*) as n_both
    from chosen as mine
    inner join chosen as other on mine.step = other.step and mine.feature = other.feature
    group by mine.concept, other.concept
),

final as (
    select
        mine.concept,
        other.concept as other_concept,
        mine.n as n_concept,
        other.n as n_other,
        coalesce(n_both, 0) as n_both,
        case
            when mine.n + other.n > 0
                then coalesce(n_both, 0)::double / (mine.n + other.n - coalesce(n_both, 0))
        end as jaccard
    from sizes as mine
    cross join sizes as other
    left join shared on mine.concept = shared.concept and other.concept = shared.other_concept
    order by mine.concept, other.concept
)

select * from final
