"""A process of one side that answers JSON lines, and who asks it: with a time limit on every answer."""

import json
import os
import queue
import subprocess
import sys
import threading
import traceback

from benchmarks.gpu import part


class WorkerError(Exception):
    """A worker could not do what it was asked, or did not answer in time; one line."""


class Worker:
    """`python -m MODULE ARGS` in a process of its own, its words going to this one's stderr."""

    def __init__(self, module: str, *args: str, env: dict | None = None):
        self.module = module
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *args],
            cwd=part.ROOT,
            env={**os.environ, **(env or {})},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._replies: queue.Queue = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(None)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def tell(self, op: str, **request) -> None:
        """Asks without waiting; `answer` has the reply. Raises WorkerError where nobody listens."""
        try:
            self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise WorkerError(f"{self.module} has died") from error

    def answer(self, seconds: float) -> dict:
        """The next reply; after `seconds` the process is killed."""
        try:
            line = self._replies.get(timeout=max(0.1, seconds))
        except queue.Empty:
            self.close()
            raise WorkerError(f"{self.module}: no answer in {seconds:.0f} s") from None
        if line is None:
            raise WorkerError(f"{self.module} has died, status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def ask(self, op: str, limit: float, **request) -> dict:
        """The reply to `op`, given within `limit` seconds."""
        self.tell(op, **request)
        return self.answer(limit)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def serve(operations: dict) -> None:
    """Answers lines from stdin until there are no more: operations[op](**request) -> dict."""
    # What libraries print must not get between the answers: stdout becomes stderr for them.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = operations[request.pop("op")](**request)
        except Exception as error:  # told to the parent, which goes on without this task
            traceback.print_exc()
            reply = {"error": part.reason(error)}
        print(json.dumps(part.plain(reply)), file=replies)
