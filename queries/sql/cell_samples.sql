-- cell_samples: the samples that have most of a feature at one step.
--
-- Relations: stats, samples.
-- Parameters: $sae, $branch, $feature, $step, $top.
-- Columns: sample_id, prompt, seed, total (over positions), max, n_positions (at which it fired).
with
fired as (
    select
        sample_id,
        "sum"::double as total,
        "max" as highest,
        n_positions
    from stats
    where sae = $sae and branch = $branch and step = $step and feature = $feature
),

-- A family may have any name, also one of these: columns of samples are named with their table.
final as (
    select
        fired.sample_id,
        samples.prompt,
        samples.seed,
        fired.total,
        fired.highest as "max",
        fired.n_positions
    from fired
    inner join samples on fired.sample_id = samples.sample_id
    order by fired.total desc, fired.sample_id
    limit $top
)

select * from final
