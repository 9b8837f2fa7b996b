"""launch/gpu.sh without a GPU: its plan, deadlines, wheels and the reading of its profiles.

The parts themselves are rehearsed by `bash launch/gpu.sh --rehearse` (docs/performance.md).
"""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import (
    ahead,
    heads,
    lines,
    memory,
    part,
    plan,
    rows,
    run,
    sizes,
    train,
    wheels,
)
from benchmarks.gpu import trace as trace_lib
from cldm_jax.phantom.subject import Plan

ROOT = Path(__file__).resolve().parent.parent

# The plan


def test_the_minutes_are_divided_by_weight_and_what_is_left_is_shared():
    made = plan.Plan(10, ["check", "race", "train"], began=0.0)
    assert made.end == 600 - plan.END
    first = made.seconds("check", 0.0)
    assert first == pytest.approx(590 * 3 / 18)
    assert made.seconds("race", 10.0) == pytest.approx(580 * 6 / 15)  # the check was quick
    assert made.seconds("race", first) == pytest.approx(590 * 6 / 18)
    assert made.seconds("train", 400.0) == pytest.approx(190)  # the last has all of it
    assert made.seconds("train", 700.0) == 0.0


def test_parts_run_in_their_own_order_and_unknown_ones_are_refused():
    assert plan.Plan(1, ["train", "check"]).parts == ["check", "train"]
    for minutes, parts in ((0, ["check"]), (float("nan"), ["check"]), (1, []), (1, ["tain"])):
        with pytest.raises(ValueError):
            plan.Plan(minutes, parts)


def test_a_part_is_told_of_less_than_it_is_given():
    assert plan.told(100.0) == 100 - plan.NOTICE
    assert plan.told(10.0) == pytest.approx(9.0)


# Deadlines

WRITES = """
import json, os, pathlib, subprocess, sys, time
work = pathlib.Path(sys.argv[1])
(work / "out").mkdir()
(work / "out" / "curves.csv").write_text("a\\n")
(work / "result.json").write_text(json.dumps({"found": 1}))
print("written", flush=True)
"""
HANGS = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(work / "child").write_text(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def kept_signals():
    kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_part_that_hangs_is_killed_with_its_children_and_all_results_are_kept(
    tmp_path, monkeypatch, kept_signals
):
    seen = {}

    def command(name, args, work, seconds):
        seen[name] = work / name
        code = WRITES + (HANGS if name == "check" else "")
        return [sys.executable, "-c", code, str(work / name)]

    children = []

    def end(process):
        children.append(int((seen["check"] / "child").read_text()))
        original(process)

    original = run.end
    monkeypatch.setattr(run, "part_command", command)
    monkeypatch.setattr(run, "end", end)
    monkeypatch.setattr(run, "LAST", 0.5)
    out, began = tmp_path / "out", time.monotonic()
    flags = ["--rehearse", "--minutes", "0.2", "--parts", "check,race", "--out", str(out)]
    assert run.main(flags) == 1
    assert time.monotonic() - began < 12
    found = json.loads((out / "results.json").read_text())
    assert found["parts"]["check"]["status"] == "killed at its time"
    assert found["parts"]["race"]["status"] == "done"
    assert [found["parts"][p]["result"] for p in ("check", "race")] == [{"found": 1}] * 2
    assert sorted(p.name for p in out.iterdir()) == ["curves.csv", "log.txt", "results.json"]
    assert (out / "log.txt").read_text() == "written\nwritten\n"
    assert not is_running(children[0])
    with pytest.raises(SystemExit):  # an earlier run's results are not written over
        run.main(flags)


def test_results_are_there_while_a_part_still_runs(tmp_path, monkeypatch, kept_signals):
    code = WRITES + "time.sleep(1.5)"
    monkeypatch.setattr(
        run, "part_command", lambda p, a, w, s: [sys.executable, "-c", code, str(w / p)]
    )
    seen, original = [], run.Results.look

    def look(results, name):
        original(results, name)
        seen.append(json.loads((tmp_path / "results.json").read_text())["parts"][name])

    monkeypatch.setattr(run.Results, "look", look)
    flags = ["--rehearse", "--minutes", "0.5", "--parts", "train", "--out", str(tmp_path)]
    assert run.main(flags) == 0
    assert any("result" in entry and entry["status"] == "running" for entry in seen)


def test_a_task_that_fails_is_told_and_the_others_go_on(tmp_path):
    own = part.Part(tmp_path, 100.0)
    assert own.attempt("a/first", lambda: {"x": np.float32(2)})["x"] == 2
    assert own.attempt("a/second", lambda: 1 / 0) is None
    assert own.attempt("late", lambda: 1, needs=1000) is None
    own.put("bad", float("nan"))
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["a"]["first"]["x"] == 2 and "ZeroDivisionError" in found["a"]["second"]["failed"]
    assert "needs about 1000 s" in found["late"]["skipped"] and found["bad"] == "nan"
    assert own.failed == ["a/second"] and own.status() == 1


def test_a_worker_that_does_not_answer_is_killed(tmp_path):
    (tmp_path / "slow_worker.py").write_text(
        "import time\nfrom benchmarks.gpu import lines\n"
        "lines.serve({'wait': lambda s: time.sleep(s) or {'slept': s}, 'fail': lambda: 1 / 0})\n"
    )
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with lines.Worker("slow_worker", env=env) as worker:
        assert worker.ask("wait", 60, s=0) == {"slept": 0}
        with pytest.raises(lines.WorkerError, match="ZeroDivisionError"):
            worker.ask("fail", 60)
        with pytest.raises(lines.WorkerError, match="no answer"):
            worker.ask("wait", 0.3, s=600)
        assert not worker.is_alive


# Wheels


def make_wheel(folder: Path, name: str, version: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_only_what_is_missing_is_installed(tmp_path):
    make_wheel(tmp_path, "numpy", "0.0.1")  # is there, newer
    make_wheel(tmp_path, "ml_collections", "0.0.1")  # under another spelling
    absent = make_wheel(tmp_path, "cldm_jax_absent_thing", "1.0")
    assert wheels.missing(tmp_path) == [absent]


@pytest.mark.skipif(
    subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0,
    reason="this interpreter has no pip",
)
def test_wheels_go_into_a_folder_of_their_own(tmp_path):
    folder, target = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    assert wheels.install(folder, target) == {"installed": []}
    made = make_wheel(folder, "cldm_jax_absent_thing", "1.0")
    assert wheels.install(folder, target) == {"installed": [made.name]}
    assert (target / "cldm_jax_absent_thing.py").is_file()
    made.write_bytes(b"no wheel")
    with pytest.raises(RuntimeError, match="could not be installed"):
        wheels.install(folder, tmp_path / "other")


# Trainings side by side


def worker(folder: Path, name: str, source: str) -> train.Training:
    (folder / name).mkdir()
    return train.Training(name, folder / name, [sys.executable, "-c", source, str(folder / name)])


def wait_for(training: train.Training, state: str) -> None:
    end = time.monotonic() + 20
    while training.state != state:
        assert time.monotonic() < end, training.facts()
        training.look()
        time.sleep(0.02)


def test_a_training_waits_for_its_turn_after_its_first_steps(tmp_path):
    body = "import pathlib, sys, time; p = pathlib.Path(sys.argv[1])\n"
    body += "(p / 'metrics.jsonl').write_text('{}')\nfor i in range(20): time.sleep(0.05)\n"
    training = worker(tmp_path, "a", body + "(p / 'end').touch()")
    try:
        wait_for(training, "ready")
        time.sleep(1.5)  # longer than it would need
        assert not (tmp_path / "a" / "end").exists() and training.compile_s > 0
        training.go_on()
        wait_for(training, "done")
        assert (tmp_path / "a" / "end").exists() and 0 < training.device_s < 20
    finally:
        training.close()


def test_a_training_that_fails_says_its_last_words(tmp_path):
    training = worker(tmp_path, "a", "raise SystemExit('no room')")
    wait_for(training, "failed")
    assert "no room" in training.facts()["last words"]


# Profiles, rows, memory


def test_idle_is_what_no_kernel_covers():
    assert trace_lib.covered([(0, 2), (1, 3), (5, 6), (5.5, 5.8)]) == 4
    found = trace_lib.account([(0, 2e9, "a"), (1e9, 3e9, "b"), (9e9, 10e9, "a")])
    assert (found["window_s"], found["busy_s"]) == (10, 4)
    assert found["idle_share"] == pytest.approx(0.6)
    assert [k["name"] for k in found["kernels"]] == ["a", "b"]
    assert found["kernels"][0] == {"name": "a", "share": pytest.approx(0.6), "calls": 2}


def test_bytes_of_a_compiled_program_count_each_array_whole():
    text = """
fused { %p = f32[9]{0} parameter(0) }

ENTRY %main.1 (x: bf16[2,3]) -> f32[3] {
  %x = bf16[2,3]{1,0} parameter(0)
  %a = (f32[3]{0}, pred[4]{0}) fusion(%x), kind=kLoop, calls=%fused
  %b = f32[3]{0} get-tuple-element(%a), index=0
  %c = (f32[3]{0}, u8[8]{0}) custom-call(%b, %x), custom_call_target="__cudnn$convForward"
  ROOT %d = f32[3]{0} get-tuple-element(%c), index=0
}
"""
    assert ahead.moved(text) == {
        "fusion": (1, 12 + 4 + 12),
        "cudnn$convForward": (1, 12 + 12 + 12 + 8),
    }


def test_rows_have_names_of_their_own_and_peers_that_exist():
    for chosen in (sizes.FULL, sizes.TINY):
        found = rows.rows(chosen)
        names = [row.name for row in found]
        assert len(set(names)) == len(names)
        assert all(row.peer in ("", "-", *names) for row in found)
        # One step and fifty have the same slices, and the peer's row comes first.
        onestep = next(row for row in found if row.kind == "onestep")
        other = rows.find(chosen, onestep.peer)
        assert (onestep.batch, onestep.calls) == (other.batch, other.calls)
        assert names.index(onestep.peer) < names.index(onestep.name)


def test_a_larger_card_is_limited_to_what_one_of_48_gb_leaves():
    assert memory.fraction(80e9) * 80e9 == pytest.approx(46.5e9)
    assert memory.fraction(24e9) == 1.0


def make_plan(name: str, group: str) -> Plan:
    fields = dict.fromkeys(Plan.__dataclass_fields__)
    return Plan(**{**fields, "id": name, "group": group})


def test_heads_take_turns():
    given = [make_plan(f"{g}{i}", g) for g in "ab" for i in range(3)]
    assert [p.id for p in heads.in_turns(given)] == ["a0", "b0", "a1", "b1", "a2", "b2"]


# The scripts


def call(*command, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )


def test_without_a_gpu_the_script_says_so(tmp_path):
    for name in ("bash", "dirname", "basename", "env"):
        (tmp_path / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    result = call("bash", "launch/gpu.sh", PATH=str(tmp_path))
    assert result.returncode == 1 and "no NVIDIA GPU" in result.stderr
    for script in ("gpu.sh", "gpu_wheels.sh"):
        assert "launch/gpu" in call("bash", f"launch/{script}", "--help").stdout


def test_flags_that_cannot_be_are_refused(tmp_path, capsys):
    for flags, words in (
        (["--parts", "tain"], "unknown part"),
        (["--minutes", "-1"], "above 0"),
        (["--labels", str(tmp_path / "none")], "no such folder"),
    ):
        with pytest.raises(SystemExit) as error:
            run.parse([*flags, "--out", str(tmp_path / "out")])
        assert error.value.code == 2 and words in capsys.readouterr().err
