-- totals: sums over all samples of a family, feature by feature: what a concept is compared with.
--
-- Added up as in sums.sql, so the order of the concepts does not matter either.
--
-- Relations: sums, of all concepts of the family.
-- Parameters: $sae, $branch, $family, $first_step, $last_step, $map_positions, $unit.
-- Columns: as the table totals (docs/format.md, section 1.5).
with
concept_sums as (
    select
        concept,
        step,
        timestep,
        feature,
        "sum" as feature_sum,
        n_samples
    from sums
    where
        sae = $sae
        and family = $family
        and branch = $branch
        and step between $first_step and $last_step
),

concepts as (
    select
        concept,
        max(n_samples) as n_samples
    from concept_sums
    group by concept
),

counts as (
    select
        count(*) as n_concepts,
        sum(n_samples) as n_samples
    from concepts
),

features as (
    select
        step,
        feature,
        min(timestep) as timestep,
        sum((feature_sum * $unit)::decimal(38, 0)) as units,
        sum((feature_sum / n_samples * $unit)::decimal(38, 0)) as mean_units
    from concept_sums
    group by step, feature
),

steps as (
    select
        step,
        sum(units) as units
    from features
    group by step
),

final as (
    select
        $family as family,
        $branch as branch,
        features.step,
        features.timestep,
        features.feature,
        features.units::double / $unit as total,
        features.mean_units::double / $unit / counts.n_concepts / $map_positions as mean_all,
        counts.n_samples,
        steps.units::double / $unit as total_all_features
    from features
    inner join steps on features.step = steps.step
    cross join counts
    order by features.step, features.feature
)

select * from final
