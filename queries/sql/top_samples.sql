-- top_samples: the samples that have most of a feature.
--
-- Relations: sample_totals, the result of sample_totals.sql, and samples.
-- Parameters: $top.
-- Columns: sample_id, prompt, seed, total (over steps and positions), max, peak_step and
-- peak_timestep (where max is; of several the first), n_steps (at which it fired).
with
-- A family may have any name, also one of these: columns of samples are named with their table.
final as (
    select
        sample_totals.sample_id,
        samples.prompt,
        samples.seed,
        sample_totals.total,
        sample_totals."max",
        sample_totals.peak_step,
        sample_totals.peak_timestep,
        sample_totals.n_steps
    from sample_totals
    inner join samples on sample_totals.sample_id = samples.sample_id
    order by sample_totals.total desc, sample_totals.sample_id
    limit $top
)

select * from final
