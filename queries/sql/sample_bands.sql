-- sample_bands: samples with much, some and little of a feature, in equal bands by its total.
--
-- Relations: sample_totals, the result of sample_totals.sql, and samples.
-- Parameters: $bands, $top (of each band, from the middle of the band on).
-- Columns: band (1: most), n_samples (in the band), sample_id, prompt, seed, total (over steps and
-- positions), max, peak_step and peak_timestep (where max is; of several the first).
with
banded as (
    select
        *,
        ntile($bands) over (order by total desc, sample_id) as band
    from sample_totals
),

within_bands as (
    select
        *,
        count(*) over (partition by band) as n_samples,
        row_number() over (partition by band order by total desc, sample_id) as rank_in_band
    from banded
),

chosen as (
    select * from within_bands
    where rank_in_band > floor((n_samples - least($top, n_samples)) / 2)
),

ranked as (
    select
        *,
        row_number() over (partition by band order by rank_in_band) as chosen_rank
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
    where ranked.chosen_rank <= $top
    order by ranked.band, ranked.rank_in_band
)

select * from final
