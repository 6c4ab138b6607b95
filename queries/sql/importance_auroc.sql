-- importance_auroc: how well a feature's sum tells a concept's samples from others, step by step.
--
-- The area under the ROC curve: the chance that a sample of the concept has more of the feature
-- than one of the others, a tie counting one half. A sample in which the feature did not fire has
-- 0. It depends on the order of the samples only, not on how strong a feature is.
--
-- Relations: stats, codes, and labelled(sample_id, concept): the samples of the family.
-- Parameters: $sae, $branch, $family.
-- Columns: family, concept, branch, step, timestep, feature, score (0 to 1): every concept for
-- every feature that fired at the step.
with
fired as (
    select
        sample_id,
        step,
        feature,
        "sum" as total
    from stats
    where sae = $sae and branch = $branch
),

encoded as (
    select distinct sample_id from codes
    where sae = $sae and branch = $branch
),

steps as (
    select
        step,
        min(timestep) as timestep
    from codes
    where sae = $sae and branch = $branch
    group by step
),

counts as (
    select
        concept,
        count(*) as n,
        sum(count(*)) over () - count(*) as n_other
    from labelled
    semi join encoded using (sample_id)
    group by concept
),

tied as (
    select
        concept,
        step,
        feature,
        total,
        count(*) as n
    from fired
    inner join labelled using (sample_id)
    group by concept, step, feature, total
),

ranked as (
    select
        *,
        sum(n) over (partition by step, feature, total) as n_equal,
        sum(n) over (
            partition by step, feature
            order by total range between unbounded preceding and current row
        ) as n_up_to,
        sum(n) over (
            partition by step, feature, concept
            order by total range between unbounded preceding and current row
        ) as n_up_to_in_concept
    from tied
),

-- Among the samples in which it fired: pairs that the concept's sample wins, a tie counting 1/2.
wins as (
    select
        concept,
        step,
        feature,
        sum(n) as n_fired,
        sum(
            n * ((n_up_to - n_equal - n_up_to_in_concept + n)::double + (n_equal - n)::double / 2)
        ) as n_won
    from ranked
    group by concept, step, feature
),

totals as (
    select
        step,
        feature,
        sum(n_fired) as n_fired
    from wins
    group by step, feature
),

pairs as (
    select
        counts.concept,
        totals.step,
        totals.feature,
        counts.n::double as n,
        counts.n_other::double as n_other,
        coalesce(wins.n_fired, 0)::double as n_fired,
        (totals.n_fired - coalesce(wins.n_fired, 0))::double as n_fired_other,
        coalesce(wins.n_won, 0) as n_won
    from totals
    cross join counts
    left join
        wins
        on
            counts.concept = wins.concept
            and totals.step = wins.step
            and totals.feature = wins.feature
),

final as (
    select
        $family as family,
        pairs.concept,
        $branch as branch,
        pairs.step,
        steps.timestep,
        pairs.feature,
        (
            n_won
            + n_fired * (n_other - n_fired_other)
            + (n - n_fired) * (n_other - n_fired_other) / 2
        )
        / (n * n_other) as score
    from pairs
    inner join steps on pairs.step = steps.step
    order by concept, step, feature
)

select * from final
