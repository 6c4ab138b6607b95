-- step_candidates: the sums of the features whose scores can be a step's best, without the others.
--
-- A score is at most the concept's own share of it. So the $top-th largest score of the features of
-- which the concept has most is a bound: what has less than that as its own share is not among the
-- $top largest positive scores. The rows of a silent concept stay in.
--
-- Relations: largest_sums and concept_sums, the results of the files of these names; importance,
-- the result of importance.sql over largest_sums.
-- Parameters: $concept (null: all), $map_positions, $delta, $top.
-- Columns: as concept_sums.sql.
with
bounds as (
    select
        concept,
        step,
        count(*) as n_scores,
        max_by(score, score, $top) as best
    from importance
    group by concept, step
),

owners as (
    select
        concept,
        step,
        max(n_samples) as n_samples,
        max(sum_all_features) as sum_all_features
    from largest_sums
    group by concept, step
),

-- What a concept must have of a feature at least: its share is the bound, less room for rounding.
needed as (
    select
        owners.concept,
        owners.step,
        case when n_scores >= $top then greatest(list_min(best), 0) else 0 end
        * (owners.sum_all_features + $delta * owners.n_samples * $map_positions)
        * (1 - 1e-9) as least
    from owners
    inner join bounds on owners.concept = bounds.concept and owners.step = bounds.step
),

smallest as (
    select min(least) as least from needed
),

final as (
    select
        concept_sums.concept,
        concept_sums.step,
        concept_sums.timestep,
        concept_sums.feature,
        concept_sums."sum",
        concept_sums.n_samples,
        concept_sums.sum_all_features
    from concept_sums
    inner join needed
        on concept_sums.concept = needed.concept and concept_sums.step = needed.step
    where
        ($concept is null or concept_sums.concept = $concept)
        and concept_sums."sum" >= (select least from smallest)
        and concept_sums."sum" >= needed.least
    order by concept_sums.concept, concept_sums.step, concept_sums.feature
)

select * from final
