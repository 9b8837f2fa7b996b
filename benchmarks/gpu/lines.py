"""A process of one side that answers JSON lines, and who asks it: with a time limit on every answer."""

import json
import os
import queue
import subprocess
import sys
import threading
import traceback

from benchmarks.gpu import part

DAY = 86400.0  # seconds: where nothing hurries


class WorkerError(Exception):
    """A worker could not do what it was asked, or did not answer in time; one line."""


class Worker:
    """`python -m MODULE ARGS` in a process of its own, its words going to this one's stderr if `options`
    of subprocess.Popen do not say otherwise.
    """

    def __init__(self, module: str, *args: str, env: dict | None = None, **options):
        self.name = " ".join((module, *args))
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *args],
            cwd=part.ROOT,
            env={**os.environ, **(env or {})},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
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
            raise self._death() from error

    def answer(self, seconds: float) -> dict:
        """The next reply; after `seconds` the process is killed."""
        try:
            line = self._replies.get(timeout=max(0.1, seconds))
        except queue.Empty:
            self.close()
            raise WorkerError(f"{self.name}: no answer in {seconds:.0f} s") from None
        if line is None:
            raise self._death()
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def _death(self) -> WorkerError:
        return WorkerError(f"{self.name} has died: {self.last_words()}")

    def last_words(self) -> str:
        return f"status {self._process.wait()}"

    def ask(self, op: str, limit: float = DAY, **request) -> dict:
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
    """Answers lines from stdin until there are no more."""
    # What libraries print must not get between the answers: stdout becomes stderr for them.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        print(reply(operations, line), file=replies)


def reply(operations: dict, line: str) -> str:
    """The answer to a line: operations[op](**request), a dict."""
    request = json.loads(line)
    try:
        found = operations[request.pop("op")](**request)
    except Exception as error:  # told to the parent, which goes on without this task
        traceback.print_exc()
        found = {"error": part.reason(error)}
    return json.dumps(part.plain(found))
