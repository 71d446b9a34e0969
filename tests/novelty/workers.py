"""Two processes fit a novelty, each on its share, and compare it with that of one process; run by torchrun."""

import os
import sys
import tempfile

import pytest
import torch
import torch.distributed as dist
from torch import nn

import bensemble
from bensemble.errors import BensembleError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Gaussian
from tests.engines.processes import agree, checks_of, out_of_sight, own_third, run
from tests.novelty.tasks import batches, blobs, mlp

X, Y = blobs(300)
HELD = blobs(80, seed=4)
NEW = blobs(30, seed=5)[0]


def network(outputs=3):
    torch.manual_seed(1)
    return mlp(outputs=outputs)


def one_process(*arguments, **options):
    """The fit as one process has it."""
    with out_of_sight():
        return bensemble.fit_novelty(*arguments, **options)


def share(data):
    return batches(own_third(data), 11)


def compare(model, data, held, **options):
    alone = one_process(model, batches(data), batches(held), **options)
    together = bensemble.fit_novelty(model, share(data), share(held), **options)
    scores = together.score(NEW)
    torch.testing.assert_close(scores, alone.score(NEW), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together.heldout, alone.heldout, rtol=1e-6, atol=1e-6)
    assert agree(scores)
    assert (together.num_data, together.heldout_digest) == (alone.num_data, alone.heldout_digest)
    own = one_process(model, share(data), share(held), **options)
    assert not torch.allclose(own.score(NEW), scores, rtol=1e-6)  # a share alone is something else


def check_two_processes_are_as_one():
    compare(network(), (X, Y), HELD)
    compare(network(), (X, Y), HELD, projection=4)
    compare(network(), (X, Y), HELD, joint=False)


def check_classes_that_only_one_process_has():
    order = Y.argsort()
    compare(network(), (X[order], Y[order]), HELD)


def check_label_sets_and_bins():
    compare(network(2), (X, (X[:, :2] > 0).double()), (HELD[0], (HELD[0][:, :2] > 0).double()), likelihood=Bernoulli())
    compare(network(1), (X, X[:, :1]), (HELD[0], HELD[0][:, :1]), likelihood=Gaussian(1.0))


def check_the_seed_of_the_first_process_counts():
    source = torch.Generator().manual_seed(10 + dist.get_rank())
    novelty = bensemble.fit_novelty(network(), share((X, Y)), share(HELD), projection=4, generator=source)
    assert agree(novelty.score(NEW))


def check_a_failure_of_one_is_one_of_all():
    first = dist.get_rank() == 0
    for loader, held in (
        ([(X * torch.nan, Y)] if first else share((X, Y)), share(HELD)),
        (share((X, Y)), [X * torch.nan] if first else share(HELD)),
        ([] if first else share((X, Y)), share(HELD)),
    ):
        failed = "fit_novelty: process 0 of 2 has failed, got InvalidValueError"
        with pytest.raises(InvalidValueError if first else BensembleError, match=None if first else failed):
            bensemble.fit_novelty(network(), loader, held)


def check_one_class_in_each_process_is_enough():
    labels = torch.full((len(X),), dist.get_rank())
    assert bensemble.fit_novelty(network(), batches((X, labels)), share(HELD)).score(NEW).isfinite().all()


def check_held_out_data_in_one_process():
    held = batches(HELD) if dist.get_rank() else []
    novelty = bensemble.fit_novelty(network(), share((X, Y)), held)
    assert len(novelty.heldout) == 80
    assert agree(novelty.score(NEW))


def check_a_wrapped_model():
    model = network()
    wrapped = nn.parallel.DistributedDataParallel(model)
    novelty = bensemble.fit_novelty(wrapped, share((X, Y)), share(HELD))
    assert novelty.model is model
    assert torch.equal(novelty.on(wrapped).score(NEW), novelty.score(NEW))


def check_a_sharded_model():
    from torch.distributed.fsdp import fully_shard

    alone = one_process(network(), batches((X, Y)), batches(HELD))
    model = network()
    for module in (model[0], model[2], model):
        fully_shard(module)
    even = slice(dist.get_rank(), None, 2)  # every process calls the model equally often
    novelty = bensemble.fit_novelty(model, batches((X[even], Y[even])), batches([t[even] for t in HELD]))
    torch.testing.assert_close(novelty.score(NEW), alone.score(NEW), rtol=1e-6, atol=1e-6)
    assert novelty.fingerprint == alone.fingerprint
    path = os.path.join(tempfile.gettempdir(), f"novelty-{os.getpid()}")
    novelty.save(path)
    assert torch.equal(bensemble.Novelty.load(path, model).score(NEW), novelty.score(NEW))
    os.unlink(path)


if __name__ == "__main__":
    assert sys.argv[1:] == []
    run(checks_of(__name__))
