"""Serve an uncertainty file: micro-batches, a monitor with metrics for Prometheus, counts that survive a restart.

python examples/serve.py sure.onnx --port 8000

POST a JSON list of inputs to /predict, GET /health and /metrics. It needs `pip install ".[serve]"`; without a file it
makes digits.onnx first, by uncertainty_file.py. A second process needs a copy of the file, for its own snapshot.
"""

import argparse
import asyncio
import runpy
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from convert.runtime import Monitor, UncertaintySession


class Service:
    """Requests that arrive within `wait` seconds of the first one, with inputs of one shape, become one run."""

    def __init__(self, file, wait, every, most=256):
        self.session, self.wait, self.every, self.most = UncertaintySession(file), wait, every, most
        self.queue, self.monitor, self.snapshot = asyncio.Queue(), Monitor(self.session), Path(f"{file}.monitor.json")
        ((self.dtype, _),) = self.session.inputs.values()  # files of one input
        names = ("requests", "refused", "seconds", "batches", "unanswered", "rejected")  # the last two are of examples
        self.counts = Counter({f"{name}_total": 0 for name in names})
        if self.snapshot.exists():
            fresh, self.monitor = self.monitor, Monitor.from_json(self.snapshot.read_text())
            fresh.merge(self.monitor)  # refuses the counts of another file: move its snapshot away

    @asynccontextmanager
    async def lifespan(self, app):
        self.save()
        self.worker = asyncio.create_task(self.work())
        yield  # until SIGTERM; what had arrived has its answer by then
        self.save()

    def save(self):
        asyncio.get_running_loop().call_later(self.every, self.save)  # also after a failure, which is logged
        (part := Path(f"{self.snapshot}.part")).write_text(self.monitor.to_json())
        part.replace(self.snapshot)  # a kill leaves the old snapshot or the new one

    async def work(self):
        while jobs := [await self.queue.get()]:
            await asyncio.sleep(self.wait)
            while not self.queue.empty() and sum(len(array) for array, _ in jobs) < self.most:
                jobs.append(self.queue.get_nowait())
            for shape in {array.shape[1:] for array, _ in jobs}:
                arrays, futures = zip(*(job for job in jobs if job[0].shape[1:] == shape), strict=True)
                for future, reply in zip(futures, await asyncio.to_thread(self.run, arrays), strict=True):
                    future.done() or future.set_result(reply)

    def run(self, arrays):
        try:
            answer = self.session.in_batches(self.most, np.concatenate(arrays))
            watched = [answer[name].reshape(len(answer[name]), -1) for name in self.session.counts if name in answer]
            finite = np.isfinite(np.concatenate(watched, axis=1)).all(1)
            ends = np.cumsum([len(array) for array in arrays])
            replies = [answer[end - len(array) : end].to_dict() for array, end in zip(arrays, ends, strict=True)]
            self.monitor.update({name: values[finite] for name, values in answer.items()})  # refuses NaN
        except Exception as err:  # one at a time, so that only the request at fault is refused
            return [self.run([array])[0] for array in arrays] if len(arrays) > 1 else [err]
        rejected = sum(int(np.sum(reply.get("rejected", []))) for reply in replies)
        self.counts.update(batches_total=1, unanswered_total=int((~finite).sum()), rejected_total=rejected)
        return replies

    async def predict(self, request: Request):
        start, future = time.perf_counter(), asyncio.get_running_loop().create_future()
        try:
            try:
                given = await request.json()
            except ValueError as err:
                raise ValueError(f"the body must be a JSON list of inputs, got something else ({err})") from err
            if not isinstance(given, list):
                raise TypeError(f"the body must be a JSON list of inputs, got {type(given).__name__}")
            array = np.array(given, ndmin=1)
            whole = array.dtype.kind == "i"  # what JSON calls 255 may be a byte
            array, sent = array.astype(self.dtype, casting="unsafe" if whole else "same_kind"), array
            if whole and array.dtype.kind in "iu" and (array != sent).any():
                raise ValueError(f"the numbers must fit into {self.dtype}, got {sent.min()}..{sent.max()}")
            self.queue.put_nowait((array, future))
            if isinstance(reply := await future, Exception):
                raise reply
        except (RecursionError, TypeError, ValueError) as err:
            reply = JSONResponse({"detail": str(err)}, 422)
        refused, seconds = isinstance(reply, JSONResponse), time.perf_counter() - start
        self.counts.update(requests_total=1, refused_total=refused, seconds_total=seconds)
        return reply

    async def health(self):
        return {"file": self.session.name, "provider": self.session.providers[0], "seen": self.monitor.seen}

    async def metrics(self):
        verdict = await asyncio.to_thread(self.monitor.verdict)
        now = {"examples_seen": verdict.seen, "drift_evidence": verdict.evidence, "drifted": int(verdict.drifted)}
        now, kinds = now | self.counts, ("gauge", "counter")
        lines = [f"# TYPE bensemble_{n} {kinds[n in self.counts]}\nbensemble_{n} {v}\n" for n, v in now.items()]
        return PlainTextResponse("".join(lines), media_type="text/plain; version=0.0.4")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default="digits.onnx")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--wait", type=float, default=5, help="milliseconds for a batch to gather")
    parser.add_argument("--every", type=float, default=60, help="seconds between snapshots")
    args = parser.parse_args()
    if args.file == parser.get_default("file") and not Path(args.file).exists():
        runpy.run_path(str(Path(__file__).with_name("uncertainty_file.py")), run_name="__main__")
    service = Service(args.file, args.wait / 1000, args.every)
    app = FastAPI(lifespan=service.lifespan)
    for method, path in ("POST", "predict"), ("GET", "health"), ("GET", "metrics"):
        app.add_api_route(f"/{path}", getattr(service, path), methods=[method])
    uvicorn.run(app, port=args.port, log_level="warning")
