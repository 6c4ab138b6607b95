-- overlap_matrix: how much the selections of every two concepts of a family share, all steps together.
--
-- A selection is that of selection.sql with $top: at each step the n largest positive scores, ties to the smaller feature. What is
-- shared are pairs of a step and a feature.
--
-- Relations: importance, the result of importance.sql.
-- Parameters: $top.
-- Columns: concept, other_concept, n_concept, n_other, n_both, jaccard (null where neither selects anything).
with
ranked as (
    select concept, step, feature, row_number() over (partition by concept, step order by score desc, feature) as place
    from importance
    where score > 0
),
chosen as (
    select concept, step, feature from ranked where place <= $top
),
sizes as (
    select names.concept, count(chosen.feature) as n
    from (select distinct concept from importance) as names
    left join chosen on chosen.concept = names.concept
    group by names.concept
),
shared as (
    select mine.concept, other.concept as other_concept, count(*) as n_both
    from chosen as mine
    join chosen as other on other.step = mine.step and other.feature = mine.feature
    group by mine.concept, other.concept
),
final as (
    select
        mine.concept,
        other.concept as other_concept,
        mine.n as n_concept,
        other.n as n_other,
        coalesce(n_both, 0) as n_both,
        case when mine.n + other.n > 0
            then coalesce(n_both, 0)::double / (mine.n + other.n - coalesce(n_both, 0))
        end as jaccard
    from sizes as mine
    cross join sizes as other
    left join shared on shared.concept = mine.concept and shared.other_concept = other.concept
    order by mine.concept, other.concept
)
select * from final
