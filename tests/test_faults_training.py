"""The training half of the promises, at counts the suite has time for; `faults` runs all of them."""

import json
import pathlib
import shlex
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from test_docs import refusal

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # faults is no package of the installation

from faults import __main__ as runner  # noqa: E402
from faults import (  # noqa: E402
    checkpoints,
    devices,
    hurt,
    inputs,
    outputs,
    security,
    soak,
    training,
    twins,
)  # fmt: skip
from faults.common import Outcome, Promise  # noqa: E402


@pytest.fixture(scope="module")
def shared(study, tmp_path_factory) -> pathlib.Path:
    """The study's data and autoencoder, as promises share them."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "data").symlink_to(study.data_root)
    (folder / "ae").symlink_to(study.ae)
    return folder


def assert_kept(outcome: Outcome) -> None:
    assert outcome.survived == outcome.injected > 0, outcome.notes
    assert outcome.lost == 0 and outcome.negative_control is not False, outcome.notes


# What the suite says of the slow ones stands in test_train.py, test_saving.py, test_feed.py and
# test_runtime.py: the nodes of their twins.
QUICK = {3: checkpoints.damaged_checkpoints}
SLOW = {
    1: training.exact_resume,
    2: training.saved_on_request,
    4: checkpoints.failed_saves,
    5: training.no_nan,
    6: training.one_writer,
    7: devices.deterministic,
    15: soak.long_runs,
}


def run(promises: dict, number: int, shared: pathlib.Path) -> Outcome:
    folder = shared / str(number)
    folder.mkdir()
    return promises[number](folder, True)


@pytest.mark.parametrize("number", QUICK)
def test_promise(shared, number):
    outcome = run(QUICK, number, shared)
    assert_kept(outcome)
    assert outcome.negative_control is True


@pytest.mark.slow
@pytest.mark.parametrize("number", SLOW)
def test_slow_promise(shared, number):
    assert_kept(run(SLOW, number, shared))


@pytest.mark.slow
def test_a_kill_in_a_save_beside_the_steps_repeats_itself(shared, tmp_path):
    """Before the manifest of the second save, while later steps are done: it goes on from the first."""
    truth = training.uninterrupted(shared)
    words = hurt.arguments(shared, tmp_path / "run", {"train.save_every": 5})
    hooks = {"beside": 1, "at": ["sha256-10", 1, "signal", signal.SIGKILL, 0]}
    assert hurt.run(words, hooks).code == -signal.SIGKILL
    assert training.sound(tmp_path / "run", truth) == (5, "")
    ended = hurt.run(words, {"beside": 1})
    assert ended.code == 0 and "resuming" in ended.text, ended.text
    assert training.unlike(tmp_path / "run", truth) == ""


def test_full_counts_are_what_is_promised(tmp_path):
    kills = training.hurts(np.random.default_rng(0), training.KILLS, [signal.SIGKILL], 300)
    assert 2 * len(kills) == 30 and 2 * len(training.STOPS) == 20
    times = [kill.at for kill in kills if kill.kind == "time"]
    assert times == sorted(times) and max(times) - min(times) > 0.5
    assert len(training.WRITERS) + len(training.WRITER_TWINS) == 5
    assert len(checkpoints.FAILURES) == 12
    checkpoints._two_steps(tmp_path)
    assert len(checkpoints.damages(tmp_path)) >= 200


@pytest.mark.parametrize("kind", [*training.KILLS, *training.STOPS])
def test_every_kind_of_signal_is_sent(kind):
    """From outside, or by hooks that exist, at places and by acts that exist."""
    hooks = training.Hurt(kind, 9, 0.1).hooks("run")
    assert bool(hooks) == (kind not in training.FROM_OUTSIDE) or kind == "twice"
    with hurt.hooked({} if kind == "at_event" else hooks):
        pass


class TestTwins:
    def test_what_failed_is_named_and_what_was_skipped_not_counted(self, tmp_path):
        path = tmp_path / "test_x.py"
        path.write_text(
            "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n"
            "@pytest.mark.skip\ndef test_c(): pass\n@pytest.mark.slow\ndef test_d(): pass\n"
        )
        found = twins.run(tmp_path, [str(path)], quick=True)
        assert [bool(why) for why in found.values()] == [False, True]
        with pytest.raises(RuntimeError, match="pytest ended with 4"):
            twins.run(tmp_path, ["test_runtime.py::test_that_is_not_there"])

    @pytest.mark.parametrize("why", ["", "it was not seen"])
    def test_controls_are_not_counted(self, monkeypatch, why):
        found = {"tests.test_x.test_a[1]": "", "tests.test_x.TestX.test_b": why}
        monkeypatch.setattr(twins, "run", lambda *_: dict(found))
        kept = twins.promise(1, "x", ("test_x.py::test_a",), ("test_x.py::TestX::test_b",)).run
        assert kept(None, True) == Outcome(1, 1, 0, not why, [])

    def test_every_node_is_there(self, monkeypatch):
        """Of promises that are tests, and of those that run some as well."""
        nodes = {*checkpoints.TWINS, *devices.TWINS, *security.REFUSALS}
        nodes |= {*training.NAN_TWINS, *training.WRITER_TWINS}
        monkeypatch.setattr(twins, "run", lambda folder, given, *_, **__: nodes.update(given) or {})
        for promise in (*inputs.PROMISES, *outputs.PROMISES[:2], *security.PROMISES[:2]):
            promise.run(None, False)
        assert len(nodes) > 40
        for node in nodes:
            path, _, name = node.partition("::")
            text = (ROOT / "tests" / path).read_text()
            name = name.rpartition("::")[2]
            assert f"def {name}(" in text or f"class {name}:" in text, node


class TestDevices:
    """Promise 7 on processes that only pretend; `test_slow_promise` has its quick half."""

    @pytest.fixture(params=[True, False], ids=["kept", "broken"])
    def is_kept(self, request, monkeypatch):
        """Whether runs on many devices are like those on one; no process is started."""
        lock = threading.Lock()

        def run(module, words, count=1):
            with lock:
                assert refusal(f"python -m cldm_jax.main {shlex.join(words)}") == ""
            drift = 0 if request.param else 1e-2 * (count - 1)
            if module == "faults.devices":
                hashes = [f"{step} {drift}" for step in range(devices.PROBED)]
                return json.dumps({"order": [[h] for h in hashes], "noise": hashes})
            workdir = pathlib.Path(words[1].partition("=")[2])
            for step in (devices.HALF, devices.STEPS):
                (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
                (workdir / "checkpoints" / f"sha256-{step}.json").touch()
            steps, seed = range(1, devices.STEPS + 1), int("--config.seed=1" in words)
            rows = [json.dumps({"step": k, "train/loss": 1 / k + drift + seed}) for k in steps]
            (workdir / "metrics.jsonl").write_text("\n".join(rows) + "\n")

        monkeypatch.setattr(devices, "run", run)
        return request.param

    def test_what_differs_is_counted(self, is_kept, tmp_path):
        found, seed_matters, _ = devices.trained(tmp_path)
        assert len(found) == 2 * 3 + 3 + 4 + 3 and seed_matters
        kept = 3 + 2  # the methods, and what one device goes on with
        assert list(found.values()).count("") == (len(found) if is_kept else kept), found

    def test_a_run_that_ends_early_is_no_comparison(self):
        with pytest.raises(RuntimeError, match="other lines"):
            devices.farthest({(1, "train"): {"train/loss": "0x1p0"}}, {})

    def test_order_and_noise_are_probed(self, study):
        found = devices.probe(study.config("ldm", batch_size=8))
        assert [len(rows) for rows in found["order"]] == [8] * devices.PROBED
        assert len(set(found["noise"])) == devices.PROBED  # every step has its own
        assert len({h for rows in found["order"] for h in rows}) > 8


@pytest.mark.parametrize("name", checkpoints.FAILURES)
def test_every_failure_is_hooked_in(name):
    hooks = checkpoints.FAILURES[name].hooks
    with hurt.hooked({k: v for k, v in hooks.items() if k != "obeys_permissions"}):
        pass
    assert callable(hurt.obeys_permissions)  # whoever enters it gives up rights


class TestSlope:
    STEPS = np.arange(0, 2000, 10)

    def looks(self, per_1000: float) -> list:
        noise = np.random.default_rng(0).normal(0, 2e5, len(self.STEPS))
        memory = 5e8 + 3e7 * (1 - np.exp(-self.STEPS / 50)) + per_1000 * self.STEPS / 1000 + noise
        return [[int(s), float(m), 20] for s, m in zip(self.STEPS, memory, strict=True)]

    def test_warm_up_is_no_leak(self):
        assert abs(soak.slope(self.looks(0))) < soak.LIMIT / 4

    def test_a_small_leak_is_seen(self):
        assert soak.slope(self.looks(2e6)) > soak.LIMIT


@pytest.mark.slow  # of the harness, with a training of its own, as TestStopped
def test_a_lost_line_is_seen(shared):
    truth = training.uninterrupted(shared)
    assert training.sound(truth.workdir, truth) == (training.QUICK_STEPS, "")
    short = truth._replace(rows={**truth.rows, (3, "train"): {"train/loss": "0x1p0"}})
    assert "lines wrong" in training.sound(truth.workdir, short)[1]
    assert "differ" in training.unlike(truth.workdir, short)
    assert training.unlike(truth.workdir, truth) == ""


@pytest.mark.slow
class TestStopped:
    """What must not pass for a stop that went well."""

    STOP = training.Hurt("time", int(signal.SIGTERM), 0.5)

    def why(self, shared, code: int, text: str, seconds: float = 1.0) -> str:
        truth = training.uninterrupted(shared)
        ended = hurt.Ended(code, text, seconds)
        return training.ill_ended(self.STOP, ended, truth.workdir, truth)[1]

    def test_it_can_pass(self, shared):
        assert self.why(shared, 143, "stopped by signal 15; the same command resumes") == ""

    @pytest.mark.parametrize(
        "code, text, seconds",
        [
            (-15, "", 1),
            (0, "stopped by signal 15", 1),
            (143, "", 1),
            (143, "stopped by signal", 11),
        ],
    )
    def test_it_can_fail(self, shared, code, text, seconds):
        assert self.why(shared, code, text, seconds)


class TestRunner:
    def test_there_are_fifteen(self):
        assert [p.id for p in runner.PROMISES] == list(range(1, 16))

    def test_unknown_promise_is_refused(self, capsys):
        with pytest.raises(SystemExit):
            runner.parse(["--only", "3,99"])
        assert "no promise 99" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "outcome, kept",
        [
            (Outcome(3, 3, 0, True, []), True),
            (Outcome(3, 3, 0, None, []), True),
            (Outcome(3, 2, 0, True, []), False),
            (Outcome(3, 3, 1, True, []), False),
            (Outcome(3, 3, 0, False, []), False),
            (Outcome(0, 0, 0, True, []), False),
        ],
    )
    def test_kept(self, tmp_path, outcome, kept):
        row = runner.measure(Promise(1, "x", lambda folder, quick: outcome), tmp_path, True)
        assert runner.is_kept(row) is kept
        assert ("FELL SHORT" in runner.table([row])) is not kept

    def test_summary_after_every_promise_and_status(self, tmp_path, monkeypatch, capsys):
        seen = []

        def fine(folder, quick):
            assert quick and list(folder.iterdir()) == []
            return Outcome(2, 2, 0, True, ["a note"])

        def broken(folder, quick):
            seen.append(json.loads((tmp_path / "out" / "summary.json").read_text()))
            raise RuntimeError("of the harness")

        made = [Promise(1, "fine", fine), Promise(2, "broken", broken)]
        monkeypatch.setattr(runner, "PROMISES", made)
        words = ["--quick", "--only", "1,2", "--out", str(tmp_path / "out")]
        assert runner.main(words) == 1
        assert [p["id"] for p in seen[0]["promises"]] == [1]
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["promises"][0] | {"seconds": 0} == {
            "id": 1, "name": "fine", "injected": 2, "survived": 2, "lost": 0,
            "negative_control": True, "notes": ["a note"], "seconds": 0,
        }  # fmt: skip
        assert "NOT MEASURED" in summary["promises"][1]["notes"][0]
        assert "--quick" in summary["command"] and summary["versions"]["jax"]
        assert "2/2  broken" in capsys.readouterr().err
        assert runner.main([*words, "--only", "1"]) == 0


def test_a_child_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(hurt, "TIMEOUT", 0.2)
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    ended = hurt.finish(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    assert ended.code == -signal.SIGKILL and "hung" in ended.text
