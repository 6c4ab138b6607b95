"""The loop of an attack: draw targets, search for each what brings it back, judge after every
round, keep every step."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from featurestore.errors import UsageError
from featurestore.format import durable
from featurestore.format.canonical import canonical_json, sha256_text
from sae.diffusion.pipelines import describe_run, generate
from sae.evaluation.attack.methods import method_of
from sae.evaluation.attack.report import Attacked
from sae.evaluation.attack.settings import AttackSettings, Defended
from sae.evaluation.attack.victims import Case, Victim, generator_of
from sae.evaluation.judge import Judge
from sae.evaluation.pictures import check_pictures

Say = Callable[[str], object]
VERSION = 3
"""of what is kept of an attack: before 2 runs that start from pictures told their denoiser wrong
timesteps, before 3 the loss was in noise whatever the model predicts; older ones are made anew"""
STATE = ".safetensors"
"""of an attack under way, beside the place of its outcome"""


def places(
    out: Path, defended: Defended, judge: Judge, settings: AttackSettings
) -> Callable[[Case], Path]:
    """Return what says where the outcome of a case is kept; the model's weights are looked at
    once."""
    attacked = {
        "version": VERSION,
        "defence": defended.setting,
        "judge": judge.name,
        "attack": vars(settings),
        "run": describe_run(defended.model, defended.run),
    }
    if defended.plain is not None:
        attacked["plain"] = describe_run(defended.model, defended.plain)
    return functools.partial(_path_of, attacked, out, settings)


def _path_of(attacked: Mapping[str, Any], out: Path, settings: AttackSettings, case: Case) -> Path:
    """Return where the outcome of a case is kept."""
    about = {
        **attacked,
        "prompt": case.prompt.prompt,
        "seed": case.prompt.seed,
        "target": [case.family, case.concept],
    }
    if case.prompt.starts:
        about["starts"] = case.prompt.start_hashes
    key = sha256_text(canonical_json(json.loads(json.dumps(about))))[:16]
    name = "".join(c if c.isalnum() else "-" for c in case.concept)[:40]
    return out / settings.method / f"{name}-{key}.json"


class AttackLoop:
    """Attacks on pictures of one defence, round by round, until each shows its concept."""

    def __init__(
        self, defended: Defended, judge: Judge, out: Path, settings: AttackSettings, *, say: Say
    ) -> None:
        self.defended, self.judge, self.settings, self.say = defended, judge, settings, say
        self.path = places(out, defended, judge, settings)
        self.method = method_of(defended, settings)

    def run(self, cases: Sequence[Case], batch_size: int, progress: bool) -> None:
        """Attack what has no outcome yet."""
        waiting = [case for case in cases if not self.path(case).is_file()]
        with _frozen(self.defended.model.pipe):
            victims = [v for part in _batches(waiting, batch_size) for v in self._victims(part)]
            if not victims and not any(_is_attacked(self.path(case)) for case in cases):
                named = ", ".join(dict.fromkeys(f"{case.family}={case.concept}" for case in cases))
                raise UsageError(
                    f"nothing to bring back: {self.judge.name} sees {named} in none of "
                    f"{len(cases)} pictures that are drawn without a defence. Use prompts that "
                    f"show it, or a judge that sees it."
                )
            batches = _batches(victims, batch_size)
            with tqdm(
                total=len(batches) * self.settings.n_rounds,
                desc="attack",
                unit="round",
                disable=not progress,
            ) as bar:
                for batch in batches:
                    self._attack(batch, bar)

    def _victims(self, cases: Sequence[Case]) -> list[Victim]:
        """Draw the targets and what the defence makes of them; keep the outcome of those that need
        no attack."""
        model, run = self.defended.model, self.defended.run
        prompts, seeds = [c.prompt.prompt for c in cases], [c.prompt.seed for c in cases]
        starts, plain = [c.prompt.starts for c in cases], self.defended.plain or run
        latents = generate(model, plain, prompts, seeds, output_type="latent", starts=starts)
        untouched = generate(model, plain, prompts, seeds, starts=starts)
        with self.defended.attached():
            before = generate(model, run, prompts, seeds, starts=starts)
        names = [f"{prompt!r}, seed {seed}" for prompt, seed in zip(prompts, seeds, strict=True)]
        check_pictures([*untouched, *before], [*names, *(f"{name}, defended" for name in names)])
        shown = zip(self._seen(cases, untouched), self._seen(cases, before), strict=True)
        victims = []
        for case, target, images, (is_target, is_shown) in zip(
            cases, latents, zip(untouched, before, strict=True), shown, strict=True
        ):
            for name, image in zip(("target", "defended"), images, strict=True):
                self._keep_picture(case, name, image)
            if not is_target or is_shown:
                self._keep(
                    case,
                    {"shown_without_defence": is_target, "shown_before": is_target and is_shown},
                )
                continue
            victim = Victim(case, target.detach().float(), generator_of(case, self.settings.seed))
            state = self.path(case).with_suffix(STATE)
            if state.is_file():
                victim.load(state)
            else:
                victim.begin(self.method.start(victim))
            victims.append(victim)
        return victims

    def _attack(self, victims: Sequence[Victim], bar: Any) -> None:
        left, began, counted = list(victims), time.monotonic(), bar.n
        while left:
            # An interruption may have kept some of a batch a round later.
            number = min(v.round for v in left)
            now = [v for v in left if v.round == number]
            with self.defended.attached():
                self.method.round(now, number)
                images = self.method.draw(now)
            for victim, image, is_shown in zip(
                now, images, self._seen([v.case for v in now], images), strict=True
            ):
                victim.round += 1
                if is_shown or victim.round == self.settings.n_rounds:
                    self._keep_picture(victim.case, "attacked", image)
                    self._keep(victim.case, {"succeeded": is_shown, **self._course(victim)})
                    left.remove(victim)
                else:
                    victim.save(self.path(victim.case).with_suffix(STATE))
            bar.n = counted + number + 1
            bar.set_postfix_str(f"{len(left)} of {len(victims)} still removed", refresh=True)
            if number == 0 and left and counted == 0:
                minutes = (time.monotonic() - began) * (bar.total - 1) / 60
                self.say(
                    f"one round took {time.monotonic() - began:.0f} s: at most {minutes:.0f} min "
                    f"to go"
                )
        bar.n = counted + self.settings.n_rounds
        bar.refresh()

    def _seen(self, cases: Sequence[Case], images: Sequence[Any]) -> list[bool]:
        return self.judge.sees(images, [(case.family, case.concept) for case in cases])

    def _course(self, victim: Victim) -> dict[str, Any]:
        return {"rounds": victim.round, "found": self.method.found(victim), "losses": victim.losses}

    def _keep_picture(self, case: Case, name: str, image: Any) -> None:
        path = self.path(case).with_suffix("")
        durable.write_file(
            path.parent / f"{path.name}-{name}.png", functools.partial(image.save, format="PNG")
        )

    def _keep(self, case: Case, outcome: dict[str, Any]) -> None:
        body = Attacked(
            prompt=case.prompt.prompt,
            seed=case.prompt.seed,
            family=case.family,
            concept=case.concept,
            method=self.settings.method,
            starts=dict(case.prompt.start_hashes),
            **outcome,
        )
        path = self.path(case)
        durable.write_bytes(path, (json.dumps(vars(body), ensure_ascii=False) + "\n").encode())
        durable.remove(path.with_suffix(STATE))


def _is_attacked(path: Path) -> bool:
    return path.is_file() and bool(
        json.loads(path.read_text(encoding="utf-8"))["shown_without_defence"]
    )


def _batches(things: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(things[i : i + size]) for i in range(0, len(things), size)]


@contextlib.contextmanager
def _frozen(pipe: Any) -> Iterator[None]:
    """Let no weights of a pipeline have gradients: only what is searched."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
