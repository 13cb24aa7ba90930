"""What train/ leaves on a disk: whole after a kill and on a full disk, resumed, or refused in one sentence."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_train import RUN, losses

from train import export, pretrain

NANO = ROOT / "nano"
TIMES = 250 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 3
SHORT = RUN | {"tokens": 20 * 400}

pytestmark = pytest.mark.usefixtures("one_thread")


def test_killed_or_with_a_full_disk_a_file_is_the_old_or_the_new_one(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tests" / "killed.py", tmp_path / "here", str(TIMES)], timeout=3000,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "checkpoint", "training state", "adapter", "packed files"]
    assert done.stdout.count(f"disk full {TIMES} times") == 4


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after 10 of 20 steps, and what the whole run logs."""
    out = tmp_path_factory.mktemp("run")
    shutil.copy(NANO / "tokenizer.json", out)
    pretrain.train(out, **SHORT, stop_after=10)
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(out, whole, dirs_exist_ok=True)
    pretrain.train(whole, **SHORT)
    return out, losses(whole)


@pytest.fixture
def run(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("damage", [b'{"step": 20, "lo', b'{"step": 20}\n{"st',
                                    b'\n[1]\n\xff\xfe\n{"step": "x"}\nnull\n{}\n'])
def test_a_log_that_was_cut_is_mended_when_training_goes_on(damage, run, stopped):
    log = run / "log.jsonl"
    log.write_bytes(log.read_bytes() + damage)
    pretrain.train(run, **SHORT)
    assert losses(run) == stopped[1] and list(losses(run)) == [10, 20]


def test_a_run_without_a_state_begins_its_log_anew(run, stopped):
    """It was killed before the first state was saved: those steps are done again."""
    (run / "checkpoint.pt").unlink()
    pretrain.train(run, **SHORT)
    assert (run / "log.jsonl").read_text().count('"step": 10,') == 1 and losses(run) == stopped[1]


@pytest.mark.parametrize("left", [0, 1, 1000, -1])
def test_a_state_that_was_cut_is_refused(left, run):
    state = run / "checkpoint.pt"
    state.write_bytes(state.read_bytes()[:left])
    with pytest.raises(ValueError, match="checkpoint.pt: expected the state of a training, found a damaged file"):
        pretrain.train(run, **SHORT)


@pytest.mark.parametrize(("name", "other"), [("seed", 1), ("tokens", 40 * 400), ("workers", 2), ("rows", 2)])
def test_a_state_of_another_run_is_refused(name, other, run):
    with pytest.raises(ValueError, match=f"checkpoint.pt: expected the state of a run with {name} {other}, found "):
        pretrain.train(run, **SHORT | {name: other})


def test_a_vocabulary_that_changed_is_refused(run):
    text = (run / "tokenizer.json").read_bytes()
    (run / "tokenizer.json").write_bytes(text + b"\n")
    with pytest.raises(ValueError, match="expected the state of a run with tokenizer.json "):
        pretrain.train(run, **SHORT)


def test_a_state_without_such_a_record_is_resumed(run, stopped):
    """As it was saved before there was one."""
    state = torch.load(run / "checkpoint.pt")
    del state["run"]
    torch.save(state, run / "checkpoint.pt")
    pretrain.train(run, **SHORT)
    assert losses(run) == stopped[1]


def test_the_program_says_in_one_sentence_what_a_process_found(run):
    """And a meeting file of processes that were killed does not matter."""
    (run / "meeting").write_text("left behind")
    (run / "checkpoint.pt").write_bytes(b"cut")
    done = subprocess.run([sys.executable, "-m", "train.pretrain", "--out", run, "--workers", "1"], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    sentence = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sentence.startswith(f"python -m train.pretrain: {run / 'checkpoint.pt'}: expected the state of a training")


def test_without_config_json_an_export_is_not_a_checkpoint_yet(tmp_path, monkeypatch):
    shutil.copy(NANO / "tokenizer.json", tmp_path)
    monkeypatch.setattr(export, "write_tensors", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        export.write(pretrain.new_model(992, 0), tmp_path)
    assert not (tmp_path / "config.json").exists()
