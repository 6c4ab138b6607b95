-- step_candidates: the pairs of pairs.sql of which a step's best scores can be, without the rest.
--
-- A score is at most the concept's own share of it. So the $top-th largest score of the features of
-- which the concept has most, $looked of each step, is a bound: what has less than that as its own
-- share is not among the $top largest positive scores. The pairs of a silent concept stay in.
--
-- Relations: sums and totals, the results of sums.sql and totals.sql.
-- Parameters: $sae, $branch, $family, $first_step, $last_step, $map_positions, $delta, $top,
-- $looked.
-- Columns: as pairs.sql.
with
concept_sums as not materialized (
    select
        concept,
        step,
        timestep,
        feature,
        "sum" as feature_sum,
        n_samples,
        sum_all_features
    from sums
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
),

feature_totals as not materialized (
    select
        step,
        feature,
        total,
        mean_all,
        n_samples,
        total_all_features
    from totals
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
),

members as (
    select
        concept,
        step,
        max(n_samples) as n_samples,
        max(sum_all_features) as sum_all_features,
        max_by(struct_pack(feature := feature, feature_sum := feature_sum), feature_sum, $looked)
            as entries
    from concept_sums
    group by concept, step
),

looked_at as (
    select
        concept,
        step,
        n_samples,
        sum_all_features,
        unnest(entries) as entry
    from members
),

scores as (
    select
        looked_at.concept,
        looked_at.step,
        looked_at.entry.feature_sum
        / (looked_at.sum_all_features + $delta * looked_at.n_samples * $map_positions)
        - (total - looked_at.entry.feature_sum) / (
            total_all_features - looked_at.sum_all_features
            + $delta * (feature_totals.n_samples - looked_at.n_samples) * $map_positions
        ) as score
    from looked_at
    inner join feature_totals
        on
            looked_at.step = feature_totals.step
            and looked_at.entry.feature = feature_totals.feature
),

bounds as (
    select
        concept,
        step,
        count(*) as n_scores,
        max_by(score, score, $top) as best
    from scores
    group by concept, step
),

-- What a concept must have of a feature at least; less leaves room for what rounding can change.
needed as (
    select
        members.concept,
        members.step,
        case when n_scores >= $top then greatest(list_min(best), 0) else 0 end
        * (members.sum_all_features + $delta * members.n_samples * $map_positions)
        * (1 - 1e-9) as least
    from members
    inner join bounds on members.concept = bounds.concept and members.step = bounds.step
),

smallest as (
    select min(least) as least from needed
),

reaching as (
    select
        concept_sums.concept,
        concept_sums.step,
        concept_sums.timestep,
        concept_sums.feature,
        concept_sums.feature_sum,
        concept_sums.n_samples,
        concept_sums.sum_all_features
    from concept_sums
    inner join needed
        on concept_sums.concept = needed.concept and concept_sums.step = needed.step
    where
        concept_sums.feature_sum >= (select least from smallest)
        and concept_sums.feature_sum >= needed.least
),

final as (
    select
        reaching.concept,
        reaching.step,
        reaching.timestep,
        reaching.feature,
        reaching.feature_sum / reaching.n_samples / $map_positions as mean_concept,
        greatest(total - reaching.feature_sum, 0) as sum_other,
        reaching.n_samples as n_concept,
        feature_totals.n_samples - reaching.n_samples as n_other,
        reaching.sum_all_features as sum_all_concept,
        total_all_features - reaching.sum_all_features as sum_all_other,
        mean_all
    from reaching
    inner join feature_totals
        on reaching.step = feature_totals.step and reaching.feature = feature_totals.feature
    order by reaching.concept, reaching.step, reaching.feature
)

select * from final
