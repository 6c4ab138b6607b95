-- sample_bands: samples with much, some and little of a feature, in equal bands by its total.
--
-- Relations: stats, samples.
-- Parameters: $sae, $branch, $feature, $bands, $top (of each band, from the middle of the band on).
-- Columns: band (1: most), n_samples (in the band), sample_id, prompt, seed, total (over steps and
-- positions), max, peak_step and peak_timestep (where max is; of several the first).
with
fired as (
    select
        sample_id,
        step,
        timestep,
        "sum"::double as total,
        "max" as highest,
        row_number() over (partition by sample_id order by "max" desc, step) as place
    from stats
    where sae = $sae and branch = $branch and feature = $feature
),

per_sample as (
    select
        sample_id,
        sum(total) as total,
        max(highest) as "max",
        max(case when place = 1 then step end) as peak_step,
        max(case when place = 1 then timestep end) as peak_timestep
    from fired
    group by sample_id
),

banded as (
    select
        *,
        ntile($bands) over (order by total desc, sample_id) as band
    from per_sample
),

placed as (
    select
        *,
        count(*) over (partition by band) as n_samples,
        row_number() over (partition by band order by total desc, sample_id) as turn
    from banded
),

chosen as (
    select * from placed
    where turn > floor((n_samples - least($top, n_samples)) / 2)
),

ranked as (
    select
        *,
        row_number() over (partition by band order by turn) as place
    from chosen
),

-- A family may have any name, also one of these: columns of samples are named with their table.
final as (
    select
        ranked.band,
        ranked.n_samples,
        ranked.sample_id,
        samples.prompt,
        samples.seed,
        ranked.total,
        ranked."max",
        ranked.peak_step,
        ranked.peak_timestep
    from ranked
    inner join samples on ranked.sample_id = samples.sample_id
    where ranked.place <= $top
    order by ranked.band, ranked.turn
)

select * from final
