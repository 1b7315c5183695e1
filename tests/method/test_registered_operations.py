"""torch.ops.datgan_fast.* called directly cannot touch memory that is not its own: every tensor that does not fit is refused."""

import pytest
import torch

import datgan_fast  # noqa: F401  registers the operations

OPS = torch.ops.datgan_fast
M, N, SHAPE = 4, 3, (3, 5, 5)

each_impl = pytest.mark.parametrize("impl", ["", "reference"], ids=["kernels", "reference"])


def wrong_ones(t, name):
    """Tensors in t's place that are too small, too large or of another kind, with what is said of them."""
    yield t.new_zeros(*(size + 1 for size in t.shape)), (ValueError,)
    yield t.new_zeros(*(max(size - 1, 0) for size in t.shape)), (ValueError,)
    yield t.new_zeros(*t.shape, 64), (ValueError,)
    yield t.new_zeros(()), (ValueError,)
    yield t.to(torch.int64), (TypeError,)
    yield t.to("meta"), (ValueError, RuntimeError)
    yield t.to_sparse(), (TypeError, RuntimeError)
    if name in WRITTEN:
        yield t.new_zeros(1, *t.shape[1:]).expand(t.shape), (ValueError,)
        if not name.startswith("norm"):
            yield t.double(), (ValueError,)


def step_arguments():
    x, v = torch.zeros(M, *SHAPE), torch.zeros(M, *SHAPE)
    y, w = torch.zeros(N, *SHAPE), torch.zeros(N, *SHAPE)
    real, fake = torch.zeros(M), torch.zeros(N)
    return {
        "x_real": x,
        "x_fake": y,
        "v_real": v,
        "v_fake": w,
        "real_logits": real,
        "fake_logits": fake,
        "target_real": real,
        "target_fake": fake,
        "weight_real": torch.ones(M),
        "weight_fake": torch.ones(N),
        "eps": 0.1,
        "objective": "vanilla",
        "formulation": "eq10",
        "norm": "l2",
        "clip_min": -1.0,
        "clip_max": 1.0,
        "adv_real": x.clone(),
        "adv_fake": y.clone(),
        "grad_real": v.clone(),
        "grad_fake": w.clone(),
        "norm_real": torch.zeros(M),
        "norm_fake": torch.zeros(N),
        "losses": torch.zeros(2),
    }


WRITTEN = ("adv_real", "adv_fake", "grad_real", "grad_fake", "norm_real", "norm_fake", "losses", "out")
FREE = ("target_real", "target_fake")  # of any length


def lists(arguments, *names):
    """The operation's lists, of the real and of the generated side's tensor."""
    return [[arguments[f"{name}_real"], arguments[f"{name}_fake"]] for name in names]


def call_step(arguments, impl):
    logits = [arguments["real_logits"], arguments["fake_logits"]]
    OPS.attack_step(
        *lists(arguments, "x", "v"),
        logits,
        *lists(arguments, "target", "weight"),
        *(arguments[name] for name in ("eps", "objective", "formulation", "norm", "clip_min", "clip_max")),
        impl,
        *lists(arguments, "adv", "grad", "norm"),
        arguments["losses"],
    )


@each_impl
@pytest.mark.parametrize("name", [name for name, value in step_arguments().items() if isinstance(value, torch.Tensor)])
def test_attack_step_refuses_what_does_not_fit(name, impl):
    call_step(step_arguments(), impl)
    for wrong, kinds in wrong_ones(step_arguments()[name], name):
        if name in FREE and wrong.dim() == 1 and kinds == (ValueError,):  # another number of logits
            continue
        with pytest.raises(kinds):
            call_step(step_arguments() | {name: wrong}, impl)


@each_impl
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("objective", "wgan"), ("formulation", "eq9"), ("norm", "l1"), ("eps", float("nan")), ("clip_min", 2.0)],
)
def test_attack_step_refuses_other_words_and_numbers(name, wrong, impl):
    with pytest.raises(ValueError, match=name):
        call_step(step_arguments() | {name: wrong}, impl)


@each_impl
@pytest.mark.parametrize("name", ["x", "grad", "out"])
def test_perturb_refuses_what_does_not_fit(name, impl):
    def call(**changes):
        given = {"x": torch.zeros(M, *SHAPE), "grad": torch.zeros(M, *SHAPE), "out": torch.zeros(M, *SHAPE)} | changes
        OPS.perturb(given["x"], given["grad"], 1.0, "none", None, None, impl, given["out"])

    call()
    for wrong, kinds in wrong_ones(torch.zeros(M, *SHAPE), name):
        with pytest.raises(kinds):
            call(**{name: wrong})
    with pytest.raises(ValueError, match="norm must be one of"):
        OPS.perturb(*torch.zeros(2, M, 3), 1.0, "l1", None, None, impl, torch.zeros(M, 3))


@each_impl
@pytest.mark.parametrize("place", range(4))
def test_attack_loss_refuses_what_does_not_fit(place, impl):
    logits = [torch.zeros(n) for n in (M, N, M, N)]
    OPS.attack_loss(*logits, "vanilla", "eq10", impl)
    for wrong in (
        torch.zeros(64, 64),
        torch.zeros(()),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, device="meta"),
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            OPS.attack_loss(*logits[:place], wrong, *logits[place + 1 :], "vanilla", "eq10", impl)
    for objective, formulation in (("wgan", "eq10"), ("vanilla", "eq9")):
        with pytest.raises(ValueError, match="must be one of"):
            OPS.attack_loss(*logits, objective, formulation, impl)


TERMS = ("real", "fake", "weight_real", "weight_fake", "sums", "coefficient_real", "coefficient_fake")


def call_terms(impl, weight=1.0, floor=0.0, objective="vanilla", formulation="eq10", **changes):
    given = dict(zip(TERMS, map(torch.zeros, (M, N, M, N, 4, M, N)), strict=True)) | changes
    logits, written = [given[name] for name in TERMS[:2]], [given[name] for name in TERMS[2:]]
    OPS.logit_terms(*logits, weight, floor, objective, formulation, impl, *written)


@each_impl
@pytest.mark.parametrize("name", TERMS)
def test_logit_terms_refuses_what_does_not_fit(name, impl):
    call_terms(impl)
    size = 4 if name == "sums" else M if name.endswith("real") else N
    for wrong, kinds in wrong_ones(torch.zeros(size), name if name in ("real", "fake") else "out"):
        with pytest.raises(kinds):
            call_terms(impl, **{name: wrong})
    if name.startswith("coefficient"):
        with pytest.raises(ValueError, match="both sides or for none"):
            call_terms(impl, **{name: None})


@each_impl
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("objective", "wgan"), ("formulation", "eq9"), ("weight", float("nan")), ("floor", -1.0), ("floor", float("inf"))],
)
def test_logit_terms_refuses_other_words_and_numbers(name, wrong, impl):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        call_terms(impl, **{name: wrong})


@each_impl
def test_sample_images_refuses_what_does_not_fit(impl):
    def call(**changes):
        given = {
            "images": torch.zeros(M, *SHAPE, dtype=torch.uint8),
            "index": torch.zeros(N, dtype=torch.int64),
            "mirrored": torch.zeros(N, dtype=torch.bool),
            "out": torch.zeros(N, *SHAPE),
        } | changes
        OPS.sample_images(given["images"], given["index"], given["mirrored"], impl, given["out"])

    call()
    call(mirrored=None)
    for name, wrongs in {
        "images": [torch.zeros(M, *SHAPE), torch.zeros(M, 5, 5, dtype=torch.uint8), torch.zeros(0, *SHAPE).byte()],
        "index": [torch.zeros(N, dtype=torch.int32), torch.zeros(N + 1).long(), torch.zeros(N, 1).long()],
        "mirrored": [torch.zeros(N).byte(), torch.zeros(N - 1).bool(), torch.zeros(N, 1, 1, 1).bool()],
        "out": [
            torch.zeros(N - 1, *SHAPE),
            torch.zeros(N, 3, 5, 4),
            torch.zeros(N, *SHAPE).byte(),
            torch.zeros(1, *SHAPE).expand(N, *SHAPE),
        ],
    }.items():
        for wrong in [*wrongs, wrongs[0].to("meta")]:
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                call(**{name: wrong})


LISTS = ("x", "v", "logits", "targets", "weights", "adv", "grads", "norms")


@each_impl
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("place", range(len(LISTS)), ids=LISTS)
def test_attack_step_refuses_lists_of_another_length(place, count, impl):
    arguments = step_arguments()
    given = lists(arguments, "x", "v", "target", "weight", "adv", "grad", "norm")
    given.insert(2, [arguments["real_logits"], arguments["fake_logits"]])
    if count == 0 and LISTS[place] in ("weights", "grads", "norms"):  # are not wanted then
        return
    given[place] = (2 * given[place])[:count]
    with pytest.raises(ValueError, match=f"{LISTS[place]} must be two tensors.*got {count}"):
        OPS.attack_step(*given[:5], 0.1, "vanilla", "eq10", "l2", -1.0, 1.0, impl, *given[5:], arguments["losses"])


def test_nothing_is_written_where_something_is_refused():
    arguments = step_arguments()
    arguments["adv_fake"] = torch.zeros(N + 1, *SHAPE)
    arguments["adv_real"].fill_(7)
    with pytest.raises(ValueError, match="adv_fake"):
        call_step(arguments, "")
    assert (arguments["adv_real"] == 7).all()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_shapes_are_checked_without_values_too(device):
    """Fake and meta tensors, as the compiler sees them."""
    x = torch.zeros(M, *SHAPE, device=device)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match="out must be"):
        OPS.perturb(x, x, 1.0, "none", None, None, "", x[:2])
