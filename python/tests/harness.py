"""Ranks as processes, for tests that pytest runs, or tests/run.py where there is no pytest.

A pool of processes is started once for each number of ranks, and runs one function after another on all of them. A function
that fails on any rank ends the pool, so that nothing of it reaches the next test.
"""

import atexit
import faulthandler
import importlib.util
import itertools
import multiprocessing as mp
import os
import socket
import sys
import time
import traceback
from contextlib import contextmanager
from multiprocessing import connection

import numpy as np

import ferry

try:
    import pytest
except ImportError:
    pytest = None

DEVICE = os.environ.get("FERRY_TEST_DEVICE", "cpu")
LIMIT = 60 if DEVICE == "cpu" else 120  # seconds that a test may take on all ranks
BEGIN = 300  # and ranks, to begin: several import PyTorch at once, which takes a minute on a busy machine


class Skip(Exception):
    """A skip, where there is no pytest."""


SKIPS = (Skip, pytest.skip.Exception) if pytest else (Skip,)


def skip(why):
    raise pytest.skip.Exception(why) if pytest else Skip(why)


def each(**choices):
    """Runs a test once for each combination of the choices."""
    names, values = list(choices), list(itertools.product(*choices.values()))

    def mark(test):
        test.cases = [dict(zip(names, v)) for v in values]
        if not pytest:
            return test
        return pytest.mark.parametrize(",".join(names), [v if len(names) > 1 else v[0] for v in values])(test)

    return mark


@contextmanager
def raises(kind, text):
    try:
        yield
    except kind as error:
        assert text in str(error), f"{error!r} does not say {text!r}"
    else:
        raise AssertionError(f"no {kind.__name__} ({text!r}) was raised")


class Env:
    """What a function that runs on every rank is given."""

    def __init__(self, rank, ranks, port, uid):
        self.rank, self.ranks, self.port, self.uid = rank, ranks, port, uid

    def group(self, **config):
        config = {"experts": 8, "hidden": 256, "max_tokens": 16, "max_topk": 4, "threads": 1, "timeout": 60, **config}
        return ferry.Group(unique_id=self.uid, rank=self.rank, ranks=self.ranks, **config)

    def process_group(self):
        """A gloo process group of all ranks, made once in a process."""
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group(
                "gloo", init_method=f"tcp://127.0.0.1:{self.port}", rank=self.rank, world_size=self.ranks
            )
        return dist.group.WORLD


def _serve(rank, ranks, port, pipe):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if importlib.util.find_spec("torch"):
        importlib.import_module("torch")
    pipe.send("ready")
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        function, uid, arguments = work
        faulthandler.dump_traceback_later(LIMIT - 5)  # where it hangs, if it does
        try:
            result = (True, function(Env(rank, ranks, port, uid), *arguments))
        except BaseException as error:
            result = (None, str(error)) if isinstance(error, SKIPS) else (False, traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
        pipe.send(result)


class Pool:
    def __init__(self, ranks):
        context = mp.get_context("spawn")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, ranks, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)
        for pipe in self.pipes:
            if not pipe.poll(BEGIN) or pipe.recv() != "ready":
                raise AssertionError(f"a rank has not begun in {BEGIN} s")

    def run(self, function, arguments, dies):
        uid = ferry.unique_id()
        for pipe in self.pipes:
            pipe.send((function, uid, arguments))
        deadline, results = time.monotonic() + LIMIT, {}
        while len(results) < len(self.pipes) and time.monotonic() < deadline:
            waiting = {pipe: rank for rank, pipe in enumerate(self.pipes) if rank not in results}
            for pipe in connection.wait(list(waiting), timeout=1):
                results[waiting[pipe]] = self._result(waiting[pipe], dies)
                if results[waiting[pipe]][0] is False:
                    deadline = min(deadline, time.monotonic() + 3)  # for what the others have to say
        return [results.get(rank, (False, "no result")) for rank in range(len(self.pipes))]

    def _result(self, rank, dies):
        try:
            return self.pipes[rank].recv()
        except (EOFError, ConnectionResetError):
            return (rank == dies, f"the process has ended, exit code {self.processes[rank].exitcode}")

    def end(self):
        for process in self.processes:
            process.kill()


_pools = {}


@atexit.register
def end_pools():
    while _pools:
        _pools.popitem()[1].end()


def on_ranks(ranks, function, *arguments, dies=None):
    """Runs function(env, *arguments) on every rank; the list of what they returned. The process of rank `dies` may end meanwhile."""
    if ranks not in _pools:
        _pools[ranks] = Pool(ranks)
    results = _pools[ranks].run(function, arguments, dies)
    bad = [f"rank {r}:\n{text}" for r, (good, text) in enumerate(results) if good is False]
    if bad or dies is not None:
        _pools.pop(ranks).end()
    if bad:
        raise AssertionError("\n".join(bad))
    for good, text in results:
        if good is None:
            skip(text)
    return [value for _, value in results]


def alone(**config):
    """A group of one rank."""
    return Env(0, 1, 0, ferry.unique_id()).group(**config)


def draw(seed, rank, tokens, topk, experts, hidden, holes=0.1):
    """Rows, choices (some -1) and weights of a rank; every rank can draw every other's."""
    g = np.random.default_rng(1000 * seed + rank)
    x = g.standard_normal((tokens, hidden)).astype(np.float32)
    idx = np.stack([g.permutation(experts)[:topk] for _ in range(tokens)]) if tokens else np.zeros((0, topk), np.int64)
    idx = np.where(g.random(idx.shape) < holes, -1, idx)
    return x, idx.astype(np.int64), g.random((tokens, topk), dtype=np.float32)


def torch_or_skip():
    try:
        import torch
    except ImportError:
        skip("PyTorch is not installed")
    return torch


if "torch" not in sys.modules and DEVICE == "cuda":
    torch_or_skip()  # the library takes the GPU that is current for PyTorch
