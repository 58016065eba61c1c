"""Attacks of torchattacks and Foolbox through the scenario: by name, within each example's budget, as strong as in the
library."""

from __future__ import annotations

import inspect
import logging
import sys
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from conftest import ToyProblem, changed, double_precision, energy64, head, site, tally, toy_classifier, with_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsem import provenance
from fedsem.errors import ScenarioError
from fedsem.evaluation.air import Air
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.budget import gaussian
from fedsem.hooks.evasion import Evasion, Perturbation
from fedsem.registry import names
from fedsem.streams import Stream
from fedsem.units import from_db

SNR_DB = 10.0


def attack(name: str, norm: str = "linf", library: str = "torchattacks", **keys: Any) -> Evasion:
    mapping = {"name": name, "norm": norm, "objective": {"label": 1}, **keys}
    made = names("attack")[library].model_validate(mapping)
    assert isinstance(made, Evasion)
    return made


@pytest.fixture(scope="module")
def few(trained_link: TrainedLink) -> TrainedLink:
    evaluation = {"draws": {"attack": 2, "score": 16}, "baselines": False, "samples": 0}
    return changed(head(trained_link, 12), evaluation=evaluation)


def perturb(link: TrainedLink, made: Evasion, psr_db: float, stream: Stream | None = None) -> Perturbation:
    problem = LinkProblem(link, Air(link), made, SNR_DB, SNR_DB)
    problem.psr = from_db(psr_db)
    return made.perturb(problem, stream or Stream(0).child("perturb"))


def share(link: TrainedLink, metric: str, delta: Perturbation, made: Evasion | None = None) -> float:
    listeners = [one for one in link.listeners if one.branch.task == "label"]
    scored = next(iter(Scorer(link, Air(link)).score(listeners, [SNR_DB], delta, made)[0].values()))
    found = tally(scored, metric)
    return float(found.numerator.sum() / found.denominator.sum())


def within(delta: Tensor, images: Tensor, psr: float, norm: str, bounded: bool = True) -> None:
    budget = psr * energy64(images)
    assert torch.isfinite(delta).all()
    assert (energy64(delta) <= budget * (1 + 1e-5)).all()
    if norm == "linf":
        assert (delta.double().abs().flatten(1).amax(1).numpy() <= np.sqrt(budget / images[0].numel()) * 1.00001).all()
    if bounded:
        assert (images + delta).min() >= 0
        assert (images + delta).max() <= 1 + 1e-6


NAMED: list[tuple[str, str, dict[str, Any]]] = [
    ("FGSM", "linf", {}),
    ("PGD", "linf", {"steps": 5}),
    ("MIFGSM", "linf", {"steps": 5}),
    ("DIFGSM", "linf", {"steps": 5}),
    ("PGDRS", "linf", {"steps": 3, "noise_batch_size": 3, "noise_sd": 0.05}),
    ("PGDL2", "l2", {"steps": 5}),
    ("APGD", "linf", {"steps": 5}),
    ("APGD", "l2", {"steps": 5}),
    ("APGDT", "l2", {"steps": 3}),
    ("FAB", "l2", {"steps": 3}),
    ("AutoAttack", "linf", {"version": "rand"}),
    # Square leaves an image clean until it is fooled.
    ("Square", "linf", {"n_queries": 300}),
    ("Square", "l2", {"n_queries": 300}),
]


@pytest.mark.parametrize(("name", "norm", "options"), NAMED, ids=[f"{name}-{norm}" for name, norm, _ in NAMED])
def test_attacks_are_reachable_by_name_and_keep_each_examples_budget(
    few: TrainedLink, name: str, norm: str, options: dict[str, Any]
) -> None:
    link = head(few, {"AutoAttack": 1, "FAB": 2}.get(name, 6))
    # Very different energies: one budget for all would be seen at once. One image is black, one nearly.
    scales = torch.tensor([1.0, 0.0, 0.02, 0.3, 1.0, 0.6])[: len(link.images)].view(-1, 1, 1, 1)
    link = with_images(link, link.images * scales)
    made = attack(name, norm, options=options)
    made.check("attacks.a", link.plan)
    delta = perturb(link, made, -12.0)["input"]
    within(delta, link.images, from_db(-12.0), norm)
    if len(link.images) == 6:
        assert not delta[1].any()
        # Images that the link already gets wrong are left alone by some attacks (APGD, Square): not all must move.
        moved = energy64(delta) > 0.05 * from_db(-12.0) * energy64(link.images)
        assert moved[[0, 2, 3, 4, 5]].sum() >= (1 if name in ("Square", "APGD", "APGDT") else 4)
    again = perturb(link, attack(name, norm, options=options), -12.0)["input"]
    assert torch.equal(delta, again)


@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [
        ("FGSM", "linf", {}),
        ("PGD", "linf", {"steps": 6, "random_start": False}),
        ("MIFGSM", "linf", {"steps": 6}),
        ("NIFGSM", "linf", {"steps": 4}),
        ("PGDL2", "l2", {"steps": 6, "random_start": False}),
    ],
)
def test_the_adapter_gives_what_the_library_gives(
    few: TrainedLink, name: str, norm: str, options: dict[str, Any]
) -> None:
    """The library on the images themselves, one by one, with the image's own radius: nothing may be lost on the way.
    In double precision, where rounding decides no sign and no tie (see test_attacks)."""
    link = double_precision(few)
    made = attack(name, norm, options=options)
    found = perturb(link, made, -15.0)["input"]
    listener = next(one for one in link.listeners if one.branch.task == "label")
    sigma = torch.tensor(10 ** (-SNR_DB / 20), dtype=torch.float32)
    noise = sigma * Air(few).attack(next(one for one in few.listeners if one.branch.task == "label"), 0).noise

    class Net(nn.Module):
        def __init__(self, i: int) -> None:
            super().__init__()
            self.i, self.anchor = i, nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            x = link.transmitter(images.flatten(1).view(images.shape))
            logits = listener.decoder(x + noise[:, self.i : self.i + 1])
            return logits.softmax(-1).mean(0).log()

    size = link.images[0].numel() if norm == "linf" else 1
    for i, energy in enumerate(energy64(link.images)):
        radius = float(np.sqrt(from_db(-15.0) * energy / size))
        keys: dict[str, Any] = {"eps": radius, **options}
        if name != "FGSM":
            keys["alpha"] = radius * (0.2 if norm == "l2" else 0.25)  # the library's: 0.2 of 1, 2/255 of 8/255
        one = slice(i, i + 1)
        peer = getattr(torchattacks, name)(Net(i), **keys)(link.images[one], link.labels[one]) - link.images[one]
        assert (found[one] - peer).abs().max() < 5e-6
        assert peer.abs().max() > 0.01


@pytest.mark.parametrize(("name", "norm"), [("PGD", "linf"), ("PGDL2", "l2"), ("MIFGSM", "linf"), ("APGD", "l2")])
def test_library_attacks_do_at_least_as_much_harm_as_noise_and_about_as_much_as_ours(
    few: TrainedLink, name: str, norm: str
) -> None:
    made = attack(name, norm, options={"steps": 6})
    delta = perturb(few, made, -15.0)
    problem = LinkProblem(few, Air(few), made, SNR_DB, SNR_DB)
    noise = gaussian(problem.sites, {k: v.flatten(1).square().sum(1) for k, v in delta.items()}, Stream(1))
    attacked, beside = share(few, "accuracy", delta), share(few, "accuracy", noise)
    assert attacked < beside - 0.1
    ours = names("attack")["pgd"].model_validate({"norm": norm, "steps": 6, "objective": {"label": 1}})
    assert isinstance(ours, Evasion)
    if name in ("PGD", "PGDL2"):
        assert abs(attacked - share(few, "accuracy", perturb(few, ours, -15.0))) < 0.2


@pytest.mark.parametrize(("name", "norm", "options"), [("PGD", "linf", {"steps": 8}), ("PGDL2", "l2", {"steps": 8})])
def test_targeted_attacks_reach_their_target(few: TrainedLink, name: str, norm: str, options: dict[str, Any]) -> None:
    """torchattacks 3.3.0 has no `set_mode_targeted_by_label`; targets must still arrive, and nothing may be printed."""
    goal = 8
    made = attack(name, norm, options=options, targeted={"label": goal})
    made.check("attacks.a", few.plan)
    reached = share(few, "reached", perturb(few, made, -10.0), made)
    assert reached > share(few, "reached", {}, made) + 0.3
    untargeted = attack(name, norm, options=options)
    assert reached > share(few, "reached", perturb(few, untargeted, -10.0), made) + 0.1


def test_targeting_prints_nothing(few: TrainedLink, capsys: pytest.CaptureFixture[str]) -> None:
    perturb(head(few, 1), attack("PGD", targeted={"label": 1}, options={"steps": 1}), -10.0)
    assert capsys.readouterr().out == ""


def test_attacks_are_reproducible_and_leave_the_global_generator_alone(few: TrainedLink) -> None:
    """PGD starts at a random point: from the named stream, image by image, so other images do not matter."""
    before = torch.get_rng_state()
    made = attack("PGD", options={"steps": 2})
    first = perturb(few, made, -15.0)["input"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(first, perturb(few, made, -15.0)["input"])
    assert not torch.equal(first, perturb(few, made, -15.0, Stream(7))["input"])
    torch.set_rng_state(before)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.sampled_from([("PGD", "linf"), ("FGSM", "linf"), ("MIFGSM", "linf"), ("PGDL2", "l2"), ("APGD", "l2")]),
    st.floats(-60, 10),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 1e-3, 1.0, 300.0]),
)
def test_budgets_on_any_network(named: tuple[str, str], psr_db: float, seed: int, confidence: float) -> None:
    """From a network without any gradient to one so confident that the gradient is exactly zero."""
    name, norm = named
    g = torch.Generator().manual_seed(seed)
    net = toy_classifier(48, seed=seed)
    images = torch.rand((3, 3, 4, 4), generator=g)
    images[0] = images[0].round()
    labels = net(images).argmax(1)
    problem = ToyProblem(
        lambda signals, index: confidence * net(signals["input"]), {"input": site(images)}, from_db(psr_db), labels
    )
    delta = attack(name, norm, options={} if name == "FGSM" else {"steps": 3}).perturb(problem, Stream(seed))["input"]
    assert torch.isfinite(delta).all()
    within(delta, images, float(problem.psr), norm)


def test_an_exactly_zero_gradient_leaves_the_image_alone() -> None:
    """MIFGSM divides by the gradient's mean: the library returns NaN there."""
    images = torch.rand((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    problem = ToyProblem(
        lambda signals, index: 0 * signals["input"].flatten(1)[:, :5],
        {"input": site(images)},
        0.1,
        torch.zeros(2, dtype=torch.long),
    )
    assert not attack("MIFGSM", options={"steps": 2}).perturb(problem, Stream(0))["input"].any()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"name": "PDG"}, r"attacks\.a\.name.*unknown attack 'PDG'.*Did you mean 'PGD'"),
        ({"name": "DeepFool"}, r"attacks\.a\.name.*unknown attack 'DeepFool'"),
        ({"name": "PGD", "options": {"stpes": 3}}, r"attacks\.a\.options.*no option 'stpes'.*Did you mean 'steps'"),
        ({"name": "PGD", "options": {"eps": 0.1}}, r"attacks\.a\.options.*no option 'eps'"),
        ({"name": "PGD", "options": {"steps": "many"}}, r"attacks\.a\.options\.steps.*positive whole number.*'many'"),
        ({"name": "PGD", "options": {"steps": 0}}, r"attacks\.a\.options\.steps.*positive whole number, not 0"),
        ({"name": "PGD", "options": {"random_start": 1}}, r"attacks\.a\.options\.random_start.*true or false"),
        ({"name": "PGD", "options": {"alpha": -1}}, r"attacks\.a\.options\.alpha.*0 or larger"),
        ({"name": "UPGD", "options": {"loss": 3}}, r"attacks\.a\.options\.loss.*a str"),
        ({"name": "PGD", "norm": "l2"}, r"attacks\.a\.norm.*PGD works in the norm linf"),
        ({"name": "PGDL2", "norm": "linf"}, r"attacks\.a\.norm.*PGDL2 works in the norm l2"),
        ({"name": "TIFGSM", "sites": ["air"]}, r"attacks\.a\.sites.*TIFGSM of torchattacks is made for images"),
        ({"name": "Square", "sites": ["air"]}, r"attacks\.a\.sites.*Square of torchattacks is made for images"),
        ({"name": "PGD", "objective": {}}, r"attacks\.a\.objective.*exactly one classification task"),
        ({"name": "PGD", "objective": {"picture": 1}}, r"attacks\.a\.objective.*exactly one classification task"),
        ({"name": "PGD", "objective": {"target": 1}}, r"attacks\.a\.objective.*exactly one classification task"),
        ({"name": "APGD", "targeted": {"label": 3}}, r"attacks\.a\.targeted.*APGD cannot be targeted"),
        ({"name": "FAB", "targeted": {"label": 3}}, r"attacks\.a\.targeted.*FAB cannot be targeted"),
        ({"name": "PGD", "targeted": {"label": 11}}, r"attacks\.a\.targeted\.label.*choose 0 to 9"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(few: TrainedLink, keys: dict[str, Any], sentence: str) -> None:
    made = attack(**keys)
    with pytest.raises(ScenarioError, match=sentence) as caught:
        made.check("attacks.a", few.plan)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"loss": "foo"}, {"resize_rate": 50.0, "diversity_prob": 1.0}])
def test_what_the_library_finds_out_when_it_runs_is_one_sentence(few: TrainedLink, options: dict[str, Any]) -> None:
    name = "Square" if "loss" in options else "DIFGSM"
    with pytest.raises(ScenarioError, match=f"{name} of torchattacks cannot work with the options"):
        perturb(few, attack(name, options=options), -10.0)


def test_only_one_site_can_be_named() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        attack("PGD", sites=["input", "air"])


# ------------------------------------------------------------------------------------------------------------- Foolbox

FOOLBOX: list[tuple[str, str, dict[str, Any]]] = [
    ("LinfPGD", "linf", {"steps": 5}),
    ("L2PGD", "l2", {"steps": 5}),
    ("FGSM", "linf", {}),
    ("FGM", "l2", {}),
    ("L2BasicIterativeAttack", "l2", {"steps": 4}),
    ("L2AdamPGD", "l2", {"steps": 4}),
    ("MIFGSM", "linf", {"steps": 4}),
    ("VirtualAdversarialAttack", "l2", {"steps": 2}),
    ("L2AdditiveGaussianNoiseAttack", "l2", {}),
    ("LinfRepeatedAdditiveUniformNoiseAttack", "linf", {"repeats": 4}),
    ("L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack", "l2", {"repeats": 4}),
    ("L2DeepFoolAttack", "l2", {"steps": 10, "candidates": 3}),
    ("LinfDeepFoolAttack", "linf", {"steps": 10}),
    ("L2CarliniWagnerAttack", "l2", {"steps": 30, "binary_search_steps": 3, "stepsize": 0.05, "initial_const": 10.0}),
    ("DDNAttack", "l2", {"steps": 20}),
    ("L2FMNAttack", "l2", {"steps": 20}),
    ("LInfFMNAttack", "linf", {"steps": 20}),
    ("NewtonFoolAttack", "l2", {"steps": 10}),
    ("HopSkipJumpAttack", "l2", {"steps": 3, "initial_gradient_eval_steps": 20}),
    ("HopSkipJumpAttack", "linf", {"steps": 3, "initial_gradient_eval_steps": 20}),
    ("BoundaryAttack", "l2", {"steps": 100}),
]
FOOLBOX_IDS = [f"{name}-{norm}" for name, norm, _ in FOOLBOX]


def toy(sites: str, rows: int = 6, psr_db: float = -12.0, seed: int = 0) -> ToyProblem:
    """A small network without noise; pixels in [0, 1], or numbers of very different size over the air."""
    shape = (3, 5, 5) if sites == "input" else (24,)
    g = torch.Generator().manual_seed(seed)
    clean = (
        torch.rand((rows, *shape), generator=g) if sites == "input" else 4 * torch.randn((rows, *shape), generator=g)
    )
    net = toy_classifier(clean[0].numel(), seed=seed)
    labels = net(clean).argmax(1)
    state = {sites: site(clean, bounded=sites == "input")}
    return ToyProblem(lambda signals, index: net(signals[sites]), state, from_db(psr_db), labels)


@pytest.mark.parametrize("sites", ["input", "air"])
@pytest.mark.parametrize(("name", "norm", "options"), FOOLBOX, ids=FOOLBOX_IDS)
def test_foolbox_is_reachable_by_name_and_keeps_each_examples_budget(
    few: TrainedLink, name: str, norm: str, options: dict[str, Any], sites: str
) -> None:
    made = attack(name, norm, "foolbox", options=options, sites=[sites])
    made.check("attacks.a", few.plan)
    problem = toy(sites)
    problem.psr = from_db(torch.tensor([-25.0, -20.0, -15.0, -10.0, -5.0, 0.0]))
    state = problem.sites[sites]
    before = torch.get_rng_state()
    delta = made.perturb(problem, Stream(0))[sites]
    assert torch.equal(torch.get_rng_state(), before)
    for i in range(6):
        within(delta[i : i + 1], state.clean[i : i + 1], float(problem.psr[i]), norm, state.bounded)
    assert delta.any()
    assert torch.equal(delta, made.perturb(problem, Stream(0))[sites])


def test_every_attack_of_foolbox_with_a_norm_is_named_or_left_out() -> None:
    """By the library's own list: what is in L2 or L-inf and on classes is there, under each of its names."""
    from fedsem.attacks.libraries import LEFT_OUT, with_a_norm  # type: ignore[import-not-found, unused-ignore]

    bases = (foolbox.attacks.base.FixedEpsilonAttack, foolbox.attacks.base.MinimizationAttack)
    theirs = set()
    for name, cls in vars(foolbox.attacks).items():
        flexible = "distance" in inspect.signature(cls).parameters if isinstance(cls, type) else True
        # Those of Brendel and Bethge need a compiler to be made at all.
        if flexible or not issubclass(cls, bases) or "Brendel" in name or name == "PointwiseAttack":
            continue
        made = cls(steps=1) if name == "VirtualAdversarialAttack" else cls()
        if str(made.distance) in ("L2 distance", "Linf distance"):
            theirs.add(name)
    assert set(with_a_norm()) == theirs - set(LEFT_OUT)
    assert {name for name, _, _ in FOOLBOX} <= set(with_a_norm())


@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [
        ("FGSM", "linf", {}),
        ("FGM", "l2", {}),
        ("LinfPGD", "linf", {"steps": 6, "random_start": False}),
        ("L2PGD", "l2", {"steps": 6, "random_start": False}),
        ("MIFGSM", "linf", {"steps": 4}),
    ],
)
def test_the_adapter_gives_what_foolbox_gives(few: TrainedLink, name: str, norm: str, options: dict[str, Any]) -> None:
    """The library on the images themselves, with the image's own radius, in double precision, where rounding decides
    no sign and no tie."""
    link = double_precision(few)
    found = perturb(link, attack(name, norm, "foolbox", options=options), -15.0)["input"]
    listener = next(one for one in link.listeners if one.branch.task == "label")
    sigma = torch.tensor(10 ** (-SNR_DB / 20), dtype=torch.float32)
    noise = sigma * Air(few).attack(next(one for one in few.listeners if one.branch.task == "label"), 0).noise
    size = link.images[0].numel() if norm == "linf" else 1
    for i, energy in enumerate(energy64(link.images)):

        class Net(nn.Module):
            def forward(self, images: Tensor, i: int = i) -> Tensor:
                x = link.transmitter(images.flatten(1).view(images.shape))
                return listener.decoder(x + noise[:, i : i + 1]).softmax(-1).mean(0).log()

        radius = float(np.sqrt(from_db(-15.0) * energy / size))
        one = slice(i, i + 1)
        library = getattr(foolbox.attacks, name)(**options)
        _, clipped, _ = library(
            foolbox.PyTorchModel(Net().eval(), bounds=(0, 1)), link.images[one], link.labels[one], epsilons=radius
        )
        assert (found[one] - (clipped - link.images[one])).abs().max() < 5e-6


QUICK_CW = {"steps": 30, "binary_search_steps": 3, "stepsize": 0.05, "initial_const": 10.0}


@pytest.mark.parametrize(
    ("sites", "name", "options"),
    [
        ("input", "L2PGD", {"steps": 6, "rel_stepsize": 0.25}),
        ("input", "L2DeepFoolAttack", {"candidates": 4}),
        ("input", "L2CarliniWagnerAttack", QUICK_CW),
        ("air", "L2PGD", {"steps": 6, "rel_stepsize": 0.25}),
        ("air", "L2DeepFoolAttack", {}),
        ("air", "L2CarliniWagnerAttack", QUICK_CW),
        ("air", "HopSkipJumpAttack", {"steps": 6, "initial_gradient_eval_steps": 40}),
        ("air", "BoundaryAttack", {"steps": 400}),
    ],
)
def test_foolbox_hurts_more_than_noise(few: TrainedLink, sites: str, name: str, options: dict[str, Any]) -> None:
    """Over the attack's own channel draws, which minimal perturbations just get past, and for gradients over others."""
    link = head(few, 6)
    made = attack(name, "l2", "foolbox", options=options, sites=[sites])
    problem = LinkProblem(link, Air(link), made, SNR_DB, SNR_DB)
    problem.psr = from_db(-10.0 if sites == "input" else -3.0)
    delta = made.perturb(problem, Stream(0))
    noise = gaussian(problem.sites, {k: v.flatten(1).square().sum(1) for k, v in delta.items()}, Stream(1))
    wrong, beside = ((problem.logits(one, 0).argmax(-1) != problem.labels).float().mean() for one in (delta, noise))
    assert wrong >= beside + 0.3
    if name == "L2PGD":
        assert share(link, "accuracy", delta) < share(link, "accuracy", noise) - 0.2


def test_the_smallest_perturbation_is_kept_shortened_or_left_out() -> None:
    """A linear network, where it is known: (w_y - w_j) . x / ||w_y - w_j|| away. DeepFool finds it in one step, with
    2 % of overshoot; what lies beyond the budget is shortened to it; what is wrong already is left alone."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn((8, 2), generator=g)
    clean = torch.randn((5, 8), generator=g)
    margins = clean @ (w[:, 0] - w[:, 1])
    labels = (margins < 0).long()
    labels[0] = 1 - labels[0]
    distance = (margins.abs() / (w[:, 0] - w[:, 1]).norm()).square()
    energy = clean.square().sum(1)
    psr = torch.tensor([1.0, 2.0, 2.0, 0.25, 0.25]) * distance / energy
    problem = ToyProblem(lambda signals, index: signals["air"] @ w, {"air": site(clean, bounded=False)}, psr, labels)
    delta = attack("L2DeepFoolAttack", "l2", "foolbox", sites=["air"]).perturb(problem, Stream(0))["air"]
    lengths = np.sqrt(energy64(delta) / distance.numpy())
    # A logarithm of probabilities is a little more than linear; its overshoot is 2 %, and what a small constant adds.
    assert ((lengths[1:3] > 1) & (lengths[1:3] < 1.05)).all()
    np.testing.assert_allclose(lengths[[0, 3, 4]], [0, 0.5, 0.5], rtol=1e-5)
    assert ((clean + delta) @ w).argmax(1).ne(labels).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [
        ("L2PGD", "l2", {"steps": 10, "rel_stepsize": 0.25}),
        ("DDNAttack", "l2", {"steps": 40}),
        ("HopSkipJumpAttack", "l2", {"steps": 8, "initial_gradient_eval_steps": 40}),
    ],
)
def test_targeted_foolbox_reaches_its_target(few: TrainedLink, name: str, norm: str, options: dict[str, Any]) -> None:
    link = head(few, 6)
    made = attack(name, norm, "foolbox", options=options, sites=["air"], targeted={"label": 4})
    made.check("attacks.a", link.plan)
    problem = LinkProblem(link, Air(link), made, SNR_DB, SNR_DB)
    problem.psr = from_db(0.0)
    delta = made.perturb(problem, Stream(0))
    assert (problem.logits(delta, 0).argmax(-1) == 4).float().mean() > 0.7


def test_an_example_without_a_starting_point_stays_as_it_is() -> None:
    """A network that always says the same: nothing is wrong anywhere."""
    problem = toy("input", rows=2)
    problem.network = lambda signals, index: torch.tensor([[0.0, 1.0]]).repeat(len(signals["input"]), 1)
    problem.labels = torch.ones(2, dtype=torch.long)
    assert not attack("HopSkipJumpAttack", "l2", "foolbox").perturb(problem, Stream(0))["input"].any()


def test_foolbox_leaves_the_logging_of_others_alone() -> None:
    handlers = list(logging.root.handlers)
    attack("L2DeepFoolAttack", "l2", "foolbox").perturb(toy("input", rows=1), Stream(0))
    assert logging.root.handlers == handlers


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"name": "LinfPDG"}, r"attacks\.a\.name.*unknown attack 'LinfPDG' of Foolbox.*Did you mean 'LinfPGD'"),
        ({"name": "EADAttack"}, r"attacks\.a\.name.*unknown attack 'EADAttack'"),
        ({"name": "L1PGD"}, r"attacks\.a\.name.*unknown attack 'L1PGD'"),
        ({"name": "LinfPGD", "options": {"stpes": 3}}, r"attacks\.a\.options.*no option 'stpes'.*'steps'"),
        ({"name": "LinfPGD", "options": {"abs_stepsize": 3.0}}, r"attacks\.a\.options.*no option 'abs_stepsize'"),
        ({"name": "LinfPGD", "options": {"steps": 0}}, r"attacks\.a\.options\.steps.*positive whole number, not 0"),
        ({"name": "LinfPGD", "options": {"rel_stepsize": "big"}}, r"options\.rel_stepsize.*number, 0 or larger"),
        ({"name": "LInfFMNAttack", "options": {"min_stepsize": "x"}}, r"options\.min_stepsize.*number, 0 or larger"),
        ({"name": "VirtualAdversarialAttack", "norm": "l2"}, r"attacks\.a\.options.*needs a value for 'steps'"),
        ({"name": "LinfPGD", "norm": "l2"}, r"attacks\.a\.norm.*LinfPGD works in the norm linf"),
        ({"name": "L2PGD"}, r"attacks\.a\.norm.*L2PGD works in the norm l2"),
        ({"name": "L2ContrastReductionAttack", "norm": "l2", "sites": ["air"]}, r"attacks\.a\.sites.*made for images"),
        ({"name": "LinfPGD", "objective": {"picture": 1}}, r"attacks\.a\.objective.*exactly one classification task"),
        ({"name": "FGSM", "targeted": {"label": 3}}, r"attacks\.a\.targeted.*FGSM cannot be targeted"),
        ({"name": "LinfDeepFoolAttack", "targeted": {"label": 3}}, r"attacks\.a\.targeted.*cannot be targeted"),
        (
            {"name": "LinfPGD", "knowledge": {"weights": "none"}},
            r"knowledge\.weights.*works with all or surrogate, not 'none'",
        ),
    ],
)
def test_what_cannot_work_with_foolbox_is_refused(few: TrainedLink, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence) as caught:
        attack(**{"library": "foolbox", **keys}).check("attacks.a", few.plan)
    assert "\n" not in str(caught.value)


def test_what_foolbox_finds_out_when_it_runs_is_one_sentence() -> None:
    made = attack("L2DeepFoolAttack", "l2", "foolbox", options={"loss": "foo"})
    with pytest.raises(ScenarioError, match="L2DeepFoolAttack of Foolbox cannot work with the options"):
        made.perturb(toy("input", rows=1), Stream(0))


def test_without_foolbox_it_is_said_how_to_get_it(few: TrainedLink, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsem.attacks.libraries import with_a_norm  # type: ignore[import-not-found, unused-ignore]

    with_a_norm.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "foolbox"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(
        ScenarioError, match=r"'attacks\.a\.kind': Foolbox is not installed.*pip install 'fedsem\[peers\]'"
    ):
        attack("LinfPGD", library="foolbox").check("attacks.a", few.plan)
    # Everything else works without it.
    attack("PGD").check("attacks.a", few.plan)


def test_a_run_keeps_the_version_of_foolbox_where_it_uses_it(few: TrainedLink, monkeypatch: pytest.MonkeyPatch) -> None:
    label = {"label": 1}
    without = changed(few, attacks={"a": {"kind": "torchattacks", "name": "PGD", "norm": "linf", "objective": label}})
    using = changed(few, attacks={"a": {"kind": "foolbox", "name": "FGSM", "norm": "linf", "objective": label}})
    before = [provenance.evaluation_code(link.plan) for link in (without, using)]
    real = provenance.version
    monkeypatch.setattr(provenance, "version", lambda name: "9.9" if name == "foolbox" else real(name))
    after = [provenance.evaluation_code(link.plan) for link in (without, using)]
    assert after[0] == before[0]
    assert after[1] != before[1]


# ------------------------------------------------------------------------------------------- over the air, both of them

OVER_THE_AIR: list[tuple[str, str, str, dict[str, Any]]] = [
    ("torchattacks", "PGD", "linf", {"steps": 6, "random_start": False}),
    ("torchattacks", "PGDL2", "l2", {"steps": 6, "random_start": False}),
    ("torchattacks", "MIFGSM", "linf", {"steps": 4}),
    ("foolbox", "LinfPGD", "linf", {"steps": 6, "rel_stepsize": 0.25, "random_start": False}),
    ("foolbox", "L2PGD", "l2", {"steps": 6, "rel_stepsize": 0.25, "random_start": False}),
]


@pytest.mark.parametrize(("library", "name", "norm", "options"), OVER_THE_AIR)
@pytest.mark.parametrize("psr_db", [-40.0, -6.0, 10.0])
def test_the_borders_of_the_libraries_never_act_over_the_air(
    library: str, name: str, norm: str, options: dict[str, Any], psr_db: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the library shows the link stays off the borders of its range, at any budget; and a range a hundred times as
    wide, where they are nowhere near, gives the same perturbation."""
    from fedsem.attacks.libraries import _View  # type: ignore[import-not-found, unused-ignore]

    def found(wider: float) -> Tensor:
        problem = toy("air", psr_db=psr_db)
        problem.sites["air"] = site(problem.sites["air"].clean.double(), bounded=False)  # type: ignore[index]
        net, clean = toy_classifier(24).double(), problem.sites["air"].clean
        reach = 0.0

        def network(signals: Any, index: slice) -> Tensor:
            nonlocal reach
            reach = max(reach, float(signals["air"].detach().abs().max()))
            scores: Tensor = net(signals["air"])
            return scores

        problem.network = network
        true = _View.of(problem.sites["air"], problem.psr)
        assert true.reach is not None
        view = _View(wider * true.reach)
        monkeypatch.setattr(_View, "of", classmethod(lambda cls, site, psr: view))
        delta = attack(name, norm, library, sites=["air"], options=options).perturb(problem, Stream(0))["air"]
        monkeypatch.undo()
        assert reach <= true.reach / 2 * (1 + 1e-9)
        within(delta, clean, float(problem.psr), norm, bounded=False)
        assert (energy64(delta) > 0.1 * problem.psr * energy64(clean)).all()
        return delta

    near, far = found(1.0), found(100.0)
    assert (near - far).abs().max() < 1e-4 * near.abs().max()


@pytest.mark.parametrize(
    ("name", "norm"), [("PGD", "linf"), ("PGDL2", "l2"), ("APGD", "l2"), ("FAB", "linf"), ("PGDRS", "linf")]
)
def test_torchattacks_hurts_over_the_air(few: TrainedLink, name: str, norm: str) -> None:
    link = head(few, 6)
    options: dict[str, Any] = {"steps": 5} | ({"noise_sd": 0.01, "noise_batch_size": 2} if name == "PGDRS" else {})
    made = attack(name, norm, options=options, sites=["air"])
    made.check("attacks.a", link.plan)
    problem = LinkProblem(link, Air(link), made, SNR_DB, SNR_DB)
    problem.psr = from_db(-5.0)
    delta = made.perturb(problem, Stream(0))
    within(delta["air"], problem.sites["air"].clean, from_db(-5.0), norm, bounded=False)
    noise = gaussian(problem.sites, {k: v.flatten(1).square().sum(1) for k, v in delta.items()}, Stream(1))
    assert share(link, "accuracy", delta) < share(link, "accuracy", noise) - 0.1


@pytest.mark.parametrize(("name", "norm"), [("PGD", "linf"), ("PGDL2", "l2")])
def test_ours_and_the_libraries_are_the_same_over_the_air(few: TrainedLink, name: str, norm: str) -> None:
    """PGD three times, on the trained link with one draw for all steps, in double precision."""
    link = double_precision(few)
    steps: dict[str, Any] = {"steps": 6, "random_start": False}

    class Frozen(Air):
        def attack(self, listener: Any, step: int, draws: int | None = None) -> Any:
            return super().attack(listener, 0, draws)

    ours = names("attack")["pgd"].model_validate({**steps, "norm": norm, "sites": ["air"], "objective": {"label": 1}})
    rel = {"linf": 0.25, "l2": 0.2}[norm]
    theirs = attack(name, norm, sites=["air"], options=steps)
    third = attack(
        {"linf": "LinfPGD", "l2": "L2PGD"}[norm], norm, "foolbox", sites=["air"], options={**steps, "rel_stepsize": rel}
    )
    found = []
    for made in (
        ours.model_copy(update={"step_size": rel, "draws": 1}),
        *(one.model_copy(update={"draws": 1}) for one in (theirs, third)),
    ):
        assert isinstance(made, Evasion)
        problem = LinkProblem(link, Frozen(link), made, SNR_DB, SNR_DB)
        problem.psr = from_db(-6.0)
        found.append(made.perturb(problem, Stream(0))["air"])
    assert found[0].abs().max() > 0.1
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-4


ASKING = sorted(names("attack")["foolbox"].asks_only)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("library", "name", "norm"),
    [
        ("torchattacks", "Square", "linf"),
        *(("foolbox", name, "linf" if name.startswith("Linf") else "l2") for name in ASKING),
    ],
)
def test_attacks_without_gradients_know_no_weights(few: TrainedLink, library: str, name: str, norm: str) -> None:
    """They run on a link that gives no gradient, and the table says so."""
    made = attack(name, norm, library)
    assert made.knowledge.weights == "none"
    made.check("attacks.a", few.plan)
    if library == "foolbox" and name not in ("BoundaryAttack", "HopSkipJumpAttack"):
        cls = getattr(foolbox.attacks, name)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).requires_grad_(False).eval()
        seen = foolbox.PyTorchModel(network, bounds=(0, 1))
        images = torch.rand(2, 3, 2, 2)
        cls()(seen, images, foolbox.criteria.Misclassification(network(images).argmax(1)), epsilons=0.5)
    with pytest.raises(ScenarioError, match="works with none, not 'all'"):
        attack(name, norm, library, knowledge={"weights": "all"}).check("attacks.a", few.plan)
