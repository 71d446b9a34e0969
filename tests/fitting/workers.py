"""Two processes fit a posterior, each on its share, and compare it with that of one process; run by torchrun."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import bensemble
from bensemble.errors import BensembleError, InvalidValueError
from convert import bayesify, last_layer
from tests.engines.processes import agree, checks_of, out_of_sight, own_third, run
from tests.novelty.tasks import batches, blobs, mlp


def blurred(count, seed):
    """Classes that overlap, so that the data and not the prior decides what sigma is."""
    x, y = blobs(count, seed=seed)
    return x + 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype), y


DATA, HELD, NEW = blurred(300, 0), blurred(80, 4), blurred(30, 5)[0]


def network(include="last"):
    """A network that is too sure of what it has learnt, with posteriors of its last layer or of all."""
    torch.manual_seed(1)
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(DATA[0]), DATA[1]).backward()
        optimizer.step()
    chosen = {"include": last_layer(net, NEW[:2]), "example_inputs": NEW[:2]} if include == "last" else {}
    return bayesify(net.eval(), **chosen)


def fit(bnn, train, held, seed=0, **options):
    source = torch.Generator().manual_seed(seed)
    return bensemble.fit_posterior(bnn, train, val_loader=held, likelihood="categorical", generator=source, **options)


def one_process(*arguments, **options):
    """The fit as one process has it."""
    with out_of_sight():
        return fit(*arguments, **options)


def share(data):
    return batches(own_third(data), 11)


def covariance(bnn):
    """The covariance of the weights of the last layer, which does not depend on the signs of eigenvectors."""
    weight = bnn[-1]._posterior("weight")
    across = torch.kron(weight.basis.outer, weight.basis.inner)
    return across * weight.sigma().flatten().square() @ across.t()


def same(bnn, other):
    torch.testing.assert_close(covariance(bnn), covariance(other), rtol=1e-6, atol=1e-8)
    mine, theirs = (bensemble.predict(b, NEW, likelihood="categorical").probs for b in (bnn, other))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def check_two_processes_are_as_one():
    alone, together, own = network(), network(), network()
    one_process(alone, batches(DATA), None, beta=0.5)
    assert fit(together, share(DATA), None, beta=0.5).num_terms == 300
    one_process(own, share(DATA), None, beta=0.5)
    same(together, alone)
    assert agree(covariance(together))
    assert not torch.allclose(covariance(own), covariance(alone), rtol=1e-2)  # a share alone is something else


def check_held_out_terms_of_all_choose_the_scale():
    alone, together = network(), network()
    expected = one_process(alone, batches(DATA), batches(HELD))
    report = fit(together, share(DATA), share(HELD))
    same(together, alone)
    assert abs(report.nll - expected.nll) < 1e-6
    assert report.comparison.tempered == pytest.approx(expected.comparison.tempered, abs=1e-6)
    assert report.heldout == "80 held-out terms"


def check_all_layers_agree_and_are_near_to_one_process():
    alone, together = network("all"), network("all")
    expected = one_process(alone, batches(DATA), batches(HELD))
    report = fit(together, share(DATA), share(HELD), seed=dist.get_rank())
    assert report.num_terms == expected.num_terms == 300
    assert all(agree(posterior.sigma()) for _, posterior in bensemble.named_posteriors(together))
    one_process(alone, batches(DATA), None, beta=0.1)
    fit(together, share(DATA), None, beta=0.1)
    found, wanted = (dict(bensemble.named_posteriors(bnn)) for bnn in (together, alone))
    for name, posterior in found.items():
        assert 0.9 < float(posterior.sigma().mean() / wanted[name].sigma().mean()) < 1.1, name


def check_training_examples_of_all_choose_without_held_out_data():
    bnn = network()
    fit(bnn, share(DATA), None)
    assert agree(covariance(bnn))


def check_held_out_data_in_one_process():
    alone, together = network(), network()
    one_process(alone, batches(DATA), batches(HELD))
    fit(together, share(DATA), batches(HELD) if dist.get_rank() else [])
    same(together, alone)


def check_a_failure_of_one_is_one_of_all():
    bnn = network()
    before = bnn[-1].w_rho.clone()
    train = share(DATA)
    if dist.get_rank():
        train[1] = (train[1][0] * torch.nan, train[1][1])
        with pytest.raises(InvalidValueError, match="not finite"):
            fit(bnn, train, share(HELD))
    else:
        with pytest.raises(BensembleError):
            fit(bnn, train, share(HELD))
    assert torch.equal(bnn[-1].w_rho, before)


def check_a_wrapped_model():
    alone, bnn = network(), network()
    one_process(alone, batches(DATA), batches(HELD))
    fit(nn.parallel.DistributedDataParallel(bnn), share(DATA), share(HELD))
    same(bnn, alone)


def check_a_sharded_trunk():
    alone, bnn = network(), network()
    one_process(alone, batches(DATA), batches(HELD))
    for module in list(bnn)[:-1]:
        if list(module.parameters()):
            fully_shard(module)
    even = slice(dist.get_rank(), None, 2)  # every process calls the model equally often
    fit(bnn, batches([t[even] for t in DATA]), batches([t[even] for t in HELD]))
    same(bnn, alone)
    with pytest.raises(InvalidValueError, match="of a sharded model a last layer that is not sharded"):
        fit(bnn, batches(DATA), None, structure="diagonal")


if __name__ == "__main__":
    run(checks_of(__name__))
