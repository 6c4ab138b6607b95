"""Every question of the library answered by NumPy from dense codes, written from its documentation
and not from its SQL."""

import math
from typing import NamedTuple

import numpy as np

from tests.builders.stores import timestep

DELTA = 1e-8


def oracle(z, labels):
    """The published score, written from the formula: {concept: [steps, n_latents]}, and the means
    it is made of."""
    mu = z.astype(np.float64).mean(axis=2)  # sample, step, latent: mean over positions
    concepts = sorted({label for label in labels if label is not None})
    means = {c: mu[[label == c for label in labels]].mean(0) for c in concepts}
    others = {
        c: mu[[label is not None and label != c for label in labels]].mean(0) for c in concepts
    }
    share = {c: m / (m.sum(-1, keepdims=True) + DELTA) for c, m in means.items()}
    share_other = {c: m / (m.sum(-1, keepdims=True) + DELTA) for c, m in others.items()}
    mean_all = np.mean([means[c] for c in concepts], axis=0)
    return {c: share[c] - share_other[c] for c in concepts}, means, others, mean_all


class Case(NamedTuple):
    """Dense codes ``z [samples, steps, positions, n_latents]`` and what a question is asked about
    them."""

    z: np.ndarray
    ids: list
    labels: dict
    other_z: np.ndarray
    """the other SAE's or the other store's, of the same samples"""
    feature: int
    concept: str
    other_concept: str
    top: int
    importance: list
    """rows of importance.sql, which has its own oracle: the rules that follow compare its scores
    bit for bit"""

    @property
    def sums(self):
        return self.z.astype(float).sum(2)

    @property
    def sample(self):
        """Index of the sample that questions about one are asked of: it has most of the feature."""
        return int(self.sums[..., self.feature].sum(1).argmax())

    @property
    def style(self):
        return self.labels["style"]


def concepts(case):
    rows = []
    for family, labels in case.labels.items():
        for concept in sorted({c for c in labels if c is not None}, key=str.encode):
            rows.append((family, concept, labels.count(concept), labels.count(concept)))
    return sorted(rows, key=lambda row: (row[0], row[1].encode()))


def _by_concept(case, values):
    """Rows for every concept and every (step, feature) that fired in a labelled sample; ``values``:
    tuples of arrays."""
    labelled = [label is not None for label in case.style]
    fired = case.sums[labelled].sum(0) > 0
    for concept in sorted(values, key=str.encode):
        for step, feature in np.argwhere(fired).tolist():
            numbers = tuple(float(array[step, feature]) for array in values[concept])
            yield ("style", concept, "cond", step, timestep(step), feature, *numbers)


def _shares(case):
    _, means, others, _ = oracle(case.z, case.style)
    divide = lambda mean: mean / (mean.sum(-1, keepdims=True) + DELTA)  # noqa: E731
    return {c: divide(m) for c, m in means.items()}, {c: divide(m) for c, m in others.items()}


def sums(case):
    rows = []
    for step in range(case.z.shape[1]):
        fired = case.sums[[c is not None for c in case.style], step].sum(0) > 0
        for concept in {c for c in case.style if c is not None} if fired.any() else ():
            members = [c == concept for c in case.style]
            mine = case.sums[members, step].sum(0)
            features = np.flatnonzero(mine).tolist() or [int(fired.argmax())]
            keys = ("style", concept, "cond", step, timestep(step))
            rows += [(*keys, f, mine[f], sum(members), mine.sum()) for f in features]
    return sorted(rows, key=lambda row: (row[1].encode(), row[3], row[5]))


def totals(case):
    labelled = [c is not None for c in case.style]
    total, mean_all = case.sums[labelled].sum(0), oracle(case.z, case.style)[3]
    return [
        (
            "style",
            "cond",
            s,
            timestep(s),
            f,
            total[s, f],
            mean_all[s, f],
            sum(labelled),
            total[s].sum(),
        )
        for s, f in np.argwhere(total > 0).tolist()
    ]


def pairs(case):
    values = {}
    _, means, _, mean_all = oracle(case.z, case.style)
    shape = mean_all.shape
    n_labelled = sum(c is not None for c in case.style)
    total = case.sums[[c is not None for c in case.style]].sum(0)
    for concept, mean in means.items():
        own = case.sums[[c == concept for c in case.style]].sum(0)
        n = sum(c == concept for c in case.style)
        sum_all, sum_all_other = (x.sum(-1, keepdims=True) for x in (own, total - own))
        numbers = (n, n_labelled - n, sum_all, sum_all_other)
        n_all = (np.broadcast_to(number, shape) for number in numbers)
        values[concept] = (mean, total - own, *n_all, mean_all)
    return [row[1:2] + row[3:] for row in _by_concept(case, values)]


def concept_sums(case):
    return [(row[1], *row[3:]) for row in sums(case)]


def feature_totals(case):
    return [row[2:] for row in totals(case)]


def chosen_pairs(case):
    has = {(row[0], row[1], row[3]) for row in concept_sums(case)}
    return [row for row in pairs(case) if (row[0], row[1], row[3]) in has]


def _rows_of_sums(case, rows):
    """What the concepts' own samples have of the features of some pairs."""
    n_positions = case.z.shape[2]
    return [(*row[:4], row[4] * row[6] * n_positions, row[6], row[8]) for row in rows]


def largest_sums(case):
    return concept_sums(case)  # a case has fewer features than are looked at


def members(case):
    rows = {(concept, step): (n, all_) for _, concept, _, step, _, _, _, n, all_ in sums(case)}
    return sorted((key + row for key, row in rows.items()), key=lambda r: (r[0].encode(), r[1]))


def mean_bounds(case):
    """Sums over all steps times the least and largest a + b; b between its smallest and largest
    ratio to the least one of a step."""
    n_positions, n_steps = case.z.shape[2], len({row[1] for row in pairs(case)})
    own, loss, least, a, b, ratios, factors = {}, {}, {}, {}, {}, {}, {}
    for concept, step, *_, n, n_other, sum_all, sum_all_other, _ in pairs(case):
        a[concept, step] = 1 / (sum_all + DELTA * n * n_positions)
        b[concept, step] = 1 / (sum_all_other + DELTA * n_other * n_positions)
        least[step] = min(least.get(step, math.inf), b[concept, step])
    for (concept, step), value in b.items():
        ratios.setdefault(concept, []).append(value / least[step])
        if a[concept, step] < 1 / (2 * DELTA * n_positions * len(case.ids)):  # something fired
            factors.setdefault(concept, []).append(a[concept, step] + value)
    for concept, step, _, feature, mean, other, n, *_ in pairs(case):
        mine, key = mean * n * n_positions, (concept, feature)
        own[key] = own.get(key, 0) + mine
        loss[key] = loss.get(key, 0) + (mine + other) * least[step]
    rows = []
    for (concept, f), total in own.items():
        bounds = []
        for end, other_end, sign in ((min, max, -1), (max, min, 1)):
            gain = total * end(factors.get(concept, [0]))
            lost = loss[concept, f] * other_end(ratios[concept])
            bounds.append((gain - lost + sign * 1e-10 * (gain + lost)) / n_steps)
        rows.append((concept, f, *bounds))
    return sorted(rows, key=lambda row: (row[0].encode(), row[1]))


def candidates(case):
    bounds, kept = mean_bounds(case), set()
    for concept in {row[0] for row in bounds}:
        mine = [row for row in bounds if row[0] == concept]
        bound = sorted((row[2] for row in mine), reverse=True)[: case.top][-1]
        kept |= {row[:2] for row in mine if row[3] >= bound - 2e-12}
    return _rows_of_sums(case, [row for row in pairs(case) if (row[0], row[3]) in kept])


def step_candidates(case):
    """What reaches, as the concept's share, the smallest of a step's best scores; all of what the
    concept has, where fewer are positive."""
    scores, shares = oracle(case.z, case.style)[0], _shares(case)[0]
    has = {(row[1], row[3], row[5]) for row in sums(case)}
    kept = []
    for row in pairs(case):
        concept, step, _, feature = row[:4]
        fired = [f for c, s, f in has if (c, s) == (concept, step)]
        best = sorted((scores[concept][step, f] for f in fired), reverse=True)[: case.top]
        bound = max(best[-1], 0) if len(best) == case.top else 0
        if feature in fired and shares[concept][step, feature] >= bound * (1 - 1e-8):
            kept.append(row)
    return _rows_of_sums(case, kept)


def best_sums(case):
    best = {(row[0], row[1]) for row in best_scores(case)}
    return [row for row in candidates(case) if (row[0], row[3]) in best]


def best_step_sums(case):
    scores = {(r["concept"], r["step"], r["feature"]): r["score"] for r in case.importance}
    rows = []
    for key in sorted(
        {row[:2] for row in step_candidates(case)}, key=lambda k: (k[0].encode(), k[1])
    ):
        mine = [row for row in step_candidates(case) if row[:2] == key]
        best = sorted(mine, key=lambda row: (-scores[*key, row[3]], row[3]))[: case.top]
        rows += sorted(best, key=lambda row: row[3])
    return rows


def importance(case):
    scores, means, others, mean_all = oracle(case.z, case.style)
    return list(_by_concept(case, {c: (scores[c], means[c], others[c], mean_all) for c in scores}))


def importance_one_vs_max(case):
    shares, _ = _shares(case)
    values = {}
    for concept, share in shares.items():
        largest = np.max([other for name, other in shares.items() if name != concept], axis=0)
        values[concept] = (share - largest, share, largest)
    return list(_by_concept(case, values))


def importance_log_ratio(case):
    shares, others = _shares(case)
    values = {
        c: (np.log((shares[c] + 1e-6) / (others[c] + 1e-6)), shares[c], others[c]) for c in shares
    }
    return list(_by_concept(case, values))


def importance_auroc(case):
    values = {}
    for concept in {c for c in case.style if c is not None}:
        mine = case.sums[[c == concept for c in case.style]][:, None]
        other = case.sums[[c is not None and c != concept for c in case.style]][None]
        values[concept] = ((mine > other).mean((0, 1)) + (mine == other).mean((0, 1)) / 2,)
    return list(_by_concept(case, values))


def _chosen(case, concept):
    """The top n of a concept: {step: rows}."""
    chosen = {}
    for step in range(case.z.shape[1]):
        rows = [
            r
            for r in case.importance
            if r["concept"] == concept and r["step"] == step and r["score"] > 0
        ]
        chosen[step] = sorted(rows, key=lambda r: (-r["score"], r["feature"]))[: case.top]
    return chosen


_SELECTED = (
    "concept",
    "step",
    "timestep",
    "feature",
    "score",
    "mean_concept",
    "mean_other",
    "mean_all",
)


def selection(case):
    return [
        tuple(row[k] for k in _SELECTED)
        for rows in _chosen(case, case.concept).values()
        for row in rows
    ]


def random_control(case):
    order = np.random.default_rng(0).permutation(case.z.shape[3]).tolist()
    result = []
    for step, rows in _chosen(case, case.concept).items():
        taken = {row["feature"] for row in rows}
        here = {
            r["feature"]: r
            for r in case.importance
            if r["concept"] == case.concept and r["step"] == step
        }
        drawn = [
            here[f] for f in order if f in here and f not in taken and here[f]["mean_concept"] > 0
        ][: len(rows)]
        drawn.sort(key=lambda r: (-r["score"], r["feature"]))
        result += [tuple(row[k] for k in _SELECTED[1:]) for row in drawn]
    return result


def overlap(case):
    mine, other = _chosen(case, case.concept), _chosen(case, case.other_concept)
    rows = []
    for step in sorted({r["step"] for r in case.importance}):
        a, b = ({r["feature"] for r in chosen[step]} for chosen in (mine, other))
        rows.append(
            (
                step,
                timestep(step),
                len(a),
                len(b),
                len(a & b),
                len(a & b) / len(a | b) if a | b else None,
            )
        )
    return rows


def chosen_features(case):
    return [
        (concept, step, r["timestep"], r["feature"], r["score"])
        for concept in sorted({r["concept"] for r in case.importance}, key=str.encode)
        for step, rows in sorted(_chosen(case, concept).items())
        for r in sorted(rows, key=lambda r: r["feature"])
    ]


def best_features(case):
    n_steps = len({r["step"] for r in case.importance})
    rows = []
    for concept in sorted({r["concept"] for r in case.importance}, key=str.encode):
        mine = [r for r in case.importance if r["concept"] == concept]
        top = _chosen(case, concept)
        found = []
        for feature in sorted({r["feature"] for r in mine}):
            here = [r for r in mine if r["feature"] == feature]
            best = max(here, key=lambda r: r["score"])
            n_top = sum(feature in {r["feature"] for r in rows} for rows in top.values())
            mean = sum(r["score"] for r in here) / n_steps
            found.append((concept, feature, mean, best["score"], best["timestep"], n_top))
        rows += found
    return rows


def feature_names(case):
    n_steps = len({r["step"] for r in case.importance})
    means = {}
    for r in case.importance:
        of = means.setdefault(r["feature"], {})
        of[r["concept"]] = of.get(r["concept"], 0) + r["score"] / n_steps
    rows = []
    for feature, of in sorted(means.items()):
        concept = min(of, key=lambda c: (-round(of[c], 12), c.encode()))
        if of[concept] > 1e-15:
            rows.append((feature, concept, of[concept]))
    return rows


STUDENT_T = {
    1: 12.706204736432095,
    2: 4.302652729911275,
    3: 3.182446305284263,
    4: 2.7764451051977987,
    5: 2.570581835636314,
}
"""the 97.5 % quantile of Student's t, by degrees of freedom"""


def bootstrap(case):
    random = np.random.default_rng(0)
    order = np.argsort(case.ids)
    weights = np.zeros((20, len(case.ids)))
    for concept in sorted({c for c in case.style if c is not None}):
        members = [i for i in order if case.style[i] == concept]
        weights[:, members] = random.multinomial(
            len(members), np.full(len(members), 1 / len(members)), size=20
        )
    mu = case.z.astype(float).mean(2)
    share = {}
    for is_mine in (True, False):
        members = [c is not None and (c == case.concept) == is_mine for c in case.style]
        w = weights[:, members]
        mean = np.einsum("rs,stf->rtf", w, mu[members]) / w.sum(1)[:, None, None]
        share[is_mine] = mean / (mean.sum(-1, keepdims=True) + DELTA)
    scores = share[True] - share[False]
    n = sum(c == case.concept for c in case.style)
    half = np.full(scores.shape[1:], 2.0)
    if n > 1:
        half = STUDENT_T[n - 1] * math.sqrt(n / (n - 1)) * scores.std(0, ddof=1)
    return [
        (
            r["step"],
            r["timestep"],
            r["feature"],
            r["score"],
            max(-1.0, r["score"] - half[r["step"], r["feature"]]),
            min(1.0, r["score"] + half[r["step"], r["feature"]]),
        )
        for rows in _chosen(case, case.concept).values()
        for r in rows
    ]


def feature_masks(case):
    rows = []
    for f, i in np.argwhere(case.z.any((1, 2)).T).tolist():
        steps = np.flatnonzero(case.z[i, ..., f].any(1)).tolist()
        rows.append(("cond", f, case.ids[i], 0, sum(2**step for step in steps), 0))
    return sorted(rows, key=lambda row: row[1:3])


def feature_samples(case):
    rows = []
    for f, i in np.argwhere(case.z.any((1, 2)).T).tolist():
        z = case.z[i, ..., f].astype(float)
        numbers = z.sum(), z.max(), int(z.max(1).argmax()), int(z.any(1).sum()), int((z > 0).sum())
        rows.append(("cond", f, case.ids[i], *numbers))
    return sorted(rows, key=lambda row: row[1:3])


def feature_steps(case):
    rows = []
    for f, step in np.argwhere(case.z.any((0, 2)).T).tolist():
        z = case.z[:, step, :, f].astype(float)
        numbers = z.sum(), z.max(), int(z.any(1).sum()), int((z > 0).sum())
        rows.append(("cond", f, step, timestep(step), *numbers))
    return rows


def timestep_profile(case):
    z, rows = case.z[..., case.feature].astype(float), []
    for step in range(z.shape[1]):
        here = z[:, step]
        active = here[here > 0]
        mean_active = active.mean() if active.size else None
        rows.append(
            (step, timestep(step), (here > 0).any(1).mean(), here.mean(), here.max(), mean_active)
        )
    return rows


def feature_card(case):
    z = case.z[..., case.feature].astype(float)

    def measures(members):
        part = z[members]
        return (
            part.shape[0] * part.shape[1],
            (part > 0).any(2).mean(),
            (part > 0).mean(),
            part.mean(),
            part.max(),
        )

    rows = [("all", "", "", *measures(list(range(len(z)))))]
    for family, concept, *_ in concepts(case):
        rows.append(
            (
                "concept",
                family,
                concept,
                *measures([i for i, c in enumerate(case.labels[family]) if c == concept]),
            )
        )
    samples = [
        ("sample", "", str(case.ids[i]), *measures([i])) for i in range(len(z)) if z[i].any()
    ]
    return rows + sorted(samples, key=lambda row: (-row[6], row[2]))[: case.top]


def sample_totals(case):
    every = top_samples(case._replace(top=len(case.ids)))
    return sorted((row[0], *row[3:]) for row in every)


def top_samples(case):
    z, rows = case.z[..., case.feature].astype(float), []
    for i in range(len(z)):
        if z[i].any():
            step = int(z[i].max(1).argmax())
            n_steps = int(z[i].any(1).sum())
            rows.append(
                (
                    case.ids[i],
                    f"prompt {i}",
                    0,
                    z[i].sum(),
                    z[i].max(),
                    step,
                    timestep(step),
                    n_steps,
                )
            )
    return sorted(rows, key=lambda row: (-row[3], row[0]))[: case.top]


def top_positions(case):
    z = case.z[..., case.feature].astype(float)
    rows = [
        (case.ids[i], f"prompt {i}", 0, step, timestep(step), p, p // 2, p % 2, z[i, step, p])
        for i, step, p in np.argwhere(z > 0).tolist()
    ]
    return sorted(rows, key=lambda row: (-row[8], row[0], row[3], row[5]))[: case.top]


def dead_features(case):
    return [(f,) for f in range(case.z.shape[3]) if not case.z[..., f].any()]


def dense_features(case):
    rows = []
    for f in range(case.z.shape[3]):
        z = case.z[..., f].astype(float)
        density = (z > 0).any(2).mean()
        if z.any() and density >= 0.1:
            rows.append((f, density, (z > 0).mean(), z.mean(), z.max()))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def coactivation(case):
    active = case.z.any(2).reshape(-1, case.z.shape[3])
    mine, rows = active[:, case.feature], []
    for f in range(active.shape[1]):
        n_both, n_mine, n_other = (int(v.sum()) for v in (active[:, f] & mine, mine, active[:, f]))
        if f != case.feature and n_both:
            lift = n_both * len(active) / (n_mine * n_other)
            rows.append((f, n_both, n_mine, n_other, n_both / (n_mine + n_other - n_both), lift))
    return sorted(rows, key=lambda row: (-row[4], row[0]))[: case.top]


def _cosine(a, b):
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norm if norm else None


def drift(case):
    x = case.sums[..., case.feature]
    peak = int(x.sum(0).argmax())
    rows = []
    for step in range(x.shape[1]):
        previous = _cosine(x[:, step], x[:, step - 1]) if step else None
        mean = x[:, step].mean() / case.z.shape[2]
        rows.append((step, timestep(step), mean, previous, _cosine(x[:, step], x[:, peak])))
    return rows


def compare_saes(case):
    mine, other = (z.astype(float).sum(2).reshape(-1, z.shape[3]) for z in (case.z, case.other_z))
    rows = []
    for f in range(mine.shape[1]):
        similar = [(_cosine(mine[:, f], other[:, g]) or 0, g) for g in range(other.shape[1])]
        cosine, _ = max(similar)
        if cosine > 0:
            rows.append((f, min(g for c, g in similar if c > cosine - 1e-12), cosine))
    return rows


def compare_stores(case):
    rows = []
    for f in range(case.z.shape[3]):
        mine, other = case.z[..., f].astype(float), case.other_z[..., f].astype(float)
        if mine.any() or other.any():
            density = [(z > 0).any(2).mean() for z in (mine, other)]
            rows.append((f, *density, mine.mean(), other.mean(), other.mean() - mine.mean()))
    return sorted(rows, key=lambda row: (-abs(row[5]), row[0]))[: case.top]


def _best(case, concept):
    """Rows of a concept's features with the largest mean score: (feature, place, mean_score, step,
    timestep, score)."""
    mine = [r for r in case.importance if r["concept"] == concept]
    n_steps = len({r["step"] for r in case.importance})
    means = {
        f: sum(r["score"] for r in mine if r["feature"] == f) / n_steps
        for f in {r["feature"] for r in mine}
    }
    order = sorted(means, key=lambda f: (-round(means[f], 12), f))[: case.top]
    return [
        (f, place, means[f], r["step"], r["timestep"], r["score"])
        for place, f in enumerate(order, 1)
        for r in sorted(mine, key=lambda r: r["step"])
        if r["feature"] == f
    ]


def best_scores(case):
    names = sorted({r["concept"] for r in case.importance}, key=str.encode)
    return [(concept, *row) for concept in names for row in _best(case, concept)]


def concept_scores(case):
    return _best(case, case.concept)


def feature_scores(case):
    rows = [
        r
        for r in case.importance
        if r["concept"] == case.concept and r["feature"] in (case.feature, 1)
    ]
    order = sorted(rows, key=lambda r: (r["step"], -r["score"], r["feature"]))
    return [tuple(r[k] for k in _SELECTED[1:]) for r in order]


def overlap_matrix(case):
    names = sorted({r["concept"] for r in case.importance}, key=str.encode)
    chosen = {
        c: {(step, r["feature"]) for step, rows in _chosen(case, c).items() for r in rows}
        for c in names
    }
    return [
        (a, b, len(x), len(y), len(x & y), len(x & y) / len(x | y) if x | y else None)
        for a, x in chosen.items()
        for b, y in chosen.items()
    ]


def feature_sums(case):
    rows = []
    for family, concept, *_ in concepts(case):
        own = case.sums[[c == concept for c in case.labels[family]]].sum(0)
        for step, feature in np.argwhere(own).tolist():
            rows.append((family, concept, "cond", step, feature, own[step, feature]))
    return rows


def feature_concepts(case):
    z, rows = case.z[..., case.feature].astype(float), []
    for family, concept, n, _ in concepts(case):
        members = [i for i, c in enumerate(case.labels[family]) if c == concept]
        for step in range(z.shape[1]):
            here = z[members, step]
            rows.append(
                (family, concept, step, timestep(step), n, (here > 0).any(1).mean(), here.mean())
            )
    return rows


def sample_bands(case, bands=2):
    every = top_samples(case._replace(top=len(case.ids)))
    rows = []
    for band, members in enumerate(np.array_split(np.arange(len(every)), bands), 1):
        first = max(0, (len(members) - case.top) // 2)
        for i in members[first : first + case.top]:
            rows.append((band, len(members), *every[i][:7]))
    return rows


def cell_samples(case, step=1):
    z = case.z[:, step, :, case.feature].astype(float)
    rows = [
        (case.ids[i], f"prompt {i}", 0, z[i].sum(), z[i].max(), int((z[i] > 0).sum()))
        for i in range(len(z))
        if z[i].any()
    ]
    return sorted(rows, key=lambda row: (-row[3], row[0]))[: case.top]


def feature_map(case):
    z = case.z[case.sample, ..., case.feature].astype(float)
    return [(s, timestep(s), p, p // 2, p % 2, z[s, p]) for s, p in np.argwhere(z > 0).tolist()]


def position_features(case, step=1):
    z = case.z[case.sample, step].astype(float)
    rows = [(p, p // 2, p % 2, f, z[p, f]) for p, f in np.argwhere(z > 0).tolist()]
    return sorted(rows, key=lambda row: (row[0], -row[4], row[3]))


def sample_features(case):
    z, rows = case.z[case.sample].astype(float), []
    for step in range(len(z)):
        here = [
            (
                step,
                timestep(step),
                f,
                z[step, :, f].sum(),
                z[step, :, f].max(),
                int((z[step, :, f] > 0).sum()),
            )
            for f in np.flatnonzero(z[step].any(0)).tolist()
        ]
        rows += sorted(here, key=lambda row: (-row[3], row[2]))[: case.top]
    return rows


def sae_steps(case):
    n, steps, _, n_latents = case.z.shape
    alive = (case.z > 0).any((0, 2)).sum(-1)
    l0 = (case.z > 0).sum(-1).mean((0, 2))
    return [
        (s, timestep(s), n, l0[s], int(alive[s]), n_latents - int(alive[s])) for s in range(steps)
    ]
