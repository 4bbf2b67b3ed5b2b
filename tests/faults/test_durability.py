"""A save that is killed, or whose disk fails, at each of its calls; and the order of its calls."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ncsn_cli.runs.checkpoints import load_checkpoint
from tests.faults.tracing import REFUSED, TRACE, events
from tests.helpers.commands import newest_checkpoint, read

JOB = [
    "trainer.steps=4", "trainer.batch_size=16", "trainer.checkpoint_every=2",
    "trainer.keep_last=1", "schedule.num_levels=2", "dataset.num_samples=50", "model=mlp",
    "model.hidden=[8]", "plot=[]", "device=cpu",
]  # fmt: skip
ERRORS = {
    "ENOSPC": "No space left on device", "EIO": "Input/output error",
    "EROFS": "Read-only file system", "EDQUOT": "Disk quota exceeded",
}  # fmt: skip
MAY_FAIL = (".log", "/.lock")  # nothing that a run has to leave
HAS_STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here")


def injected(forked, folder, **settings):
    """One job with an injection; returns its result and its run folder."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    before = ["tests.faults.injections", "inject", {"folder": str(run), **settings}]
    return forked.call("train", [*JOB, f"hydra.run.dir={run}"], folder, before=before), run


@pytest.fixture(scope="module")
def whole(forked, tmp_path_factory):
    """[call, path, new path] of all that an undisturbed job does to its folder; the folder."""
    folder = tmp_path_factory.mktemp("whole")
    result, run = injected(forked, folder, report=str(folder / "calls"))
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()], run


@pytest.fixture(scope="module")
def calls(whole):
    """The calls once the first checkpoint is there."""
    first = next(k for k, (_, _, to) in enumerate(whole[0]) if str(to).endswith("safetensors"))
    return whole[0][first + 1 :]


def test_a_run_killed_at_any_call_keeps_a_valid_checkpoint(forked, calls, tmp_path, trials):
    cases = [(k, "kill") for k in range(1, len(calls) + 1)]
    cases += [(k, "half") for k, (call, *_) in enumerate(calls, start=1) if call == "write"]
    number = trials("A2", len(cases), 2)
    if number < len(cases):  # the calls about the checkpoint alone
        cases = [case for case in cases if "safetensors" in calls[case[0] - 1][1]]
    for at, act in random.Random(0).sample(cases, number):
        result, run = injected(forked, tmp_path, at=at, act=act, after_checkpoint=True)
        assert result.returncode == -signal.SIGKILL, (calls[at - 1], act)
        _, record = load_checkpoint(newest_checkpoint(run))
        assert record["step"] in (2, 4)


@HAS_STRACE
@pytest.mark.parametrize("beside", [False, True])
def test_a_save_killed_at_any_system_call_is_the_old_or_the_new(forked, tmp_path, trials, beside):
    def save(name, **settings):
        folder = tmp_path / name
        settings = {"folder": str(folder), "beside": beside, **settings}
        before = ["tests.faults.tracing", "save_under_strace", settings]
        code = forked.call("train", [], tmp_path, before=before).returncode
        if code == REFUSED:
            pytest.skip("tracing a process is refused here")
        return code, load_checkpoint(newest_checkpoint(folder))

    report = tmp_path / "report"
    code, (_, record) = save("whole", report=str(report))
    assert (code, record["step"]) == (0, 2)
    names = [line.partition("(")[0] for line in report.read_text().splitlines() if "(" in line]
    assert names.count("fsync") == 2
    put_in_place = next(i for i, name in enumerate(names) if name.startswith("rename"))
    for i in random.Random(0).sample(range(len(names)), trials("A2", len(names), 1)):
        call, number = names[i], names[: i + 1].count(names[i])
        code, (tensors, record) = save(f"{call}{number}", kill=[call, number])
        assert code == -signal.SIGKILL, (call, number)
        assert record["step"] == (1 if i <= put_in_place else 2), (call, number)
        assert (tensors["weight"] == record["step"]).all()


def test_a_failing_disk_ends_a_run_with_74_and_one_line(forked, calls, tmp_path, trials):
    numbers = [k for k, (_, path, _) in enumerate(calls, 1) if not path.endswith(MAY_FAIL)]
    done = max(k for k, (_, _, to) in enumerate(calls, 1) if str(to).endswith("status.json"))
    cases = list(itertools.product(numbers, ERRORS, [False, True]))
    wrong = []
    for at, error, for_good in random.Random(1).sample(cases, trials("A3", len(cases), 2)):
        result, run = injected(
            forked, tmp_path, at=at, error=error, for_good=for_good, after_checkpoint=True
        )
        case = (at, *calls[at - 1][:2], error, "for good" if for_good else "once")
        assert load_checkpoint(newest_checkpoint(run))[1]["step"] in (2, 4), case
        lines = [
            line for line in result.stderr.splitlines() if line and "with overrides" not in line
        ]
        says = (
            len(lines) == 1 and lines[0].startswith("ncsn-train: ") and ERRORS[error] in lines[0]
        )
        can_remove = not for_good or error in ("ENOSPC", "EDQUOT")
        left = list(run.rglob("*.tmp")) if can_remove else []
        state = "failed" if for_good else read(run / "status.json")["state"]
        ended = "done" if at > done and not for_good else "failed"
        if (result.returncode, says, left, state) != (74, True, [], ended):
            wrong.append((*case, result.returncode, lines, left, state))
    assert not wrong, "\n".join(map(str, wrong))


def test_a_log_or_a_lock_that_fails_does_not_end_a_run(forked, calls, tmp_path, trials):
    numbers = [k for k, (_, path, _) in enumerate(calls, 1) if path.endswith(MAY_FAIL)]
    for at in numbers[: trials("A3", len(numbers), 1)]:
        result, run = injected(forked, tmp_path, at=at, error="ENOSPC", after_checkpoint=True)
        assert (result.returncode, result.stderr) == (0, "")
        assert read(run / "status.json")["state"] == "done"


def breaches(calls, run):
    """Where the order of ``calls`` would let a power cut take what a rename has promised."""
    found, unsynced, opened, waiting, finals = [], set(), set(), set(), set()
    for call, path, to in calls:
        if f"{path}/" == f"{run}/" and call != "fsync":
            continue
        if call in ("rename", "unlink") and waiting:
            found.append(f"{call} {path} before the folder of {sorted(waiting)} was synced")
        if call in ("open", "write"):
            unsynced.add(path)
            opened |= {path} if call == "open" else set()
        elif call == "fsync":
            unsynced.discard(path)
            waiting = {name for name in waiting if os.path.dirname(name) != path}
        elif call == "rename":
            if path in unsynced:
                found.append(f"{path} became {to} before it was synced")
            opened.discard(path)
            waiting.add(to)
            finals.add(to)
    found += [f"the folder of {name} was never synced" for name in waiting]
    found += [f"{name} was written under its final name" for name in opened]
    files = {str(path) for path in run.rglob("*") if path.is_file()}
    found += [f"{name} was never renamed" for name in files - finals if not _foreign(name)]
    return found, len(finals)


def _foreign(path):
    # A log is appended to, a lock holds nothing that has to last, Hydra is Hydra.
    return path.endswith(MAY_FAIL) or "/.hydra/" in path


def test_all_is_synced_before_and_after_it_is_put_in_place(whole, trials):
    trials("A4", 1, 1)
    calls, run = whole
    found, number = breaches([c for c in calls if not _foreign(c[1])], run)
    assert (found, number) == ([], 8)


@HAS_STRACE
def test_the_system_calls_are_in_that_order_too(tmp_path, trials):
    if not trials("A4", 1, 0):
        pytest.skip("starts the installed command under strace: with --all-trials")
    run, log = tmp_path / "run", tmp_path / "log"
    command = [Path(sys.executable).parent / "ncsn-train", *JOB, f"hydra.run.dir={run}"]
    subprocess.run(
        ["strace", "-f", "-y", "-s", "300", "--seccomp-bpf", "-e", TRACE, "-o", log, *command],
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    calls = [
        c for c in events(log.read_text()) if c[1].startswith(str(run)) and not _foreign(c[1])
    ]
    found, number = breaches(calls, run)
    assert (found, number) == ([], 8)
