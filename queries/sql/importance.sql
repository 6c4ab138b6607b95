-- importance: how much each feature belongs to each concept of a family, step by step.
--
-- score(i,t,c) = mu(i,t,D_c) / (sum_j mu(j,t,D_c) + delta) - mu(i,t,D_other) / (sum_j mu(j,t,D_other) + delta)
-- (SAeUron, arXiv 2501.18052, section 3). mu is the mean over samples of the mean over positions, absent codes counting as 0;
-- D_other pools the samples of all other concepts. A sample without a label belongs to neither.
--
-- Relations: stats, codes, and labelled(sample_id, concept): the samples of the family.
-- Parameters: $sae, $branch, $family, $map_positions, $delta.
-- Columns: as the table scores (docs/format.md), every (concept, step, feature) whose mean is not zero for some concept.
with
fired as (
    select sample_id, step, feature, "sum" from stats where sae = $sae and branch = $branch
),
encoded as (
    select distinct sample_id from codes where sae = $sae and branch = $branch
),
steps as (
    select step, min(timestep) as timestep from codes where sae = $sae and branch = $branch group by step
),
-- How many encoded samples carry each concept, and how many do not.
counts as (
    select
        concept,
        count(*) as n,
        (sum(count(*)) over ())::bigint - count(*) as n_other,
        count(*) over () as n_concepts
    from labelled
    semi join encoded using (sample_id)
    group by concept
),
sums as (
    select concept, step, feature, sum("sum"::double) as total
    from fired
    join labelled using (sample_id)
    group by concept, step, feature
),
totals as (
    select step, feature, sum(total) as total from sums group by step, feature
),
-- Every feature that fired at a step, for every concept: zero where it did not fire.
means as (
    select
        counts.concept,
        totals.step,
        totals.feature,
        coalesce(sums.total, 0) / counts.n / $map_positions as mean_concept,
        greatest(totals.total - coalesce(sums.total, 0), 0) / counts.n_other / $map_positions as mean_other,
        counts.n_concepts
    from totals
    cross join counts
    left join sums using (concept, step, feature)
),
-- Floating-point sums in a fixed order: the same store gives the same scores to the last bit, ties included.
averaged as (
    select
        *,
        sum(mean_concept) over (
            partition by step, feature order by concept rows between unbounded preceding and unbounded following
        ) / n_concepts as mean_all
    from means
),
scored as (
    select
        *,
        mean_concept / (sum(mean_concept) over every_feature + $delta)
        - mean_other / (sum(mean_other) over every_feature + $delta) as score
    from averaged
    window every_feature as (
        partition by concept, step order by feature rows between unbounded preceding and unbounded following
    )
),
final as (
    select
        $family as family, concept, $branch as branch, step, timestep, feature, score, mean_concept, mean_other, mean_all
    from scored
    join steps using (step)
    order by concept, step, feature
)
select * from final
