import threading

import pytest
from jobs import left_of_sweep, outcome

from fullspectrum_ext.experiments import TrainConfig, suite, sweep, train, workers
from fullspectrum_ext.experiments.plan import load_plan, run_path
from fullspectrum_ext.experiments.runs_file import entries, read_runs
from fullspectrum_ext.experiments.sweep import Sweep, default_jobs, parse_shard

SMALL = (
    'sparsities = [0.9, 0.98]\nmethods = ["snip", "erk"]\nseeds = [0]\nepochs = 2\n'
    "batch_size = 512\n"
)


class _Killed(BaseException):
    """As a signal would come: at any moment, caught by nobody."""


def plan_of(path, text=SMALL):
    file = path / "plan.toml"
    file.write_text(text)
    return load_plan(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nothing came in the way of."""
    path = tmp_path_factory.mktemp("whole")
    Sweep(plan_of(path), path / "sweep").run(1)
    return path / "sweep"


def test_each_run_is_as_train_does_it_and_a_line_in_the_order_of_the_plan(whole, tmp_path):
    plan = load_plan(whole / "plan.toml")

    runs = read_runs(whole)

    assert [TrainConfig(**entry["config"]) for entry in runs] == list(plan.runs)
    for config, entry in zip(plan.runs, runs, strict=True):
        folder = suite.RunFolder(whole / "runs" / run_path(config))
        assert [entry] == entries(folder)
        assert len(entry["history"]["epoch"]) == 2
        assert entry["run"]["held_bytes"] > 0
    alone = suite.RunFolder(tmp_path / "alone")
    train(plan.runs[0], alone)
    assert outcome(alone.path) == outcome(whole / "runs" / run_path(plan.runs[0]))


def test_data_are_loaded_once(tmp_path, monkeypatch):
    loads, load = [], workers.load_data
    monkeypatch.setattr(workers, "load_data", lambda *a, **k: loads.append(a) or load(*a, **k))

    Sweep(plan_of(tmp_path), tmp_path / "sweep").run(1)

    assert len(loads) == 1


def test_a_finished_sweep_does_nothing(whole, monkeypatch):
    monkeypatch.setattr(workers, "train", None)
    before = (whole / "runs.jsonl").read_bytes()

    assert Sweep(load_plan(whole / "plan.toml"), whole).run(1) == []

    assert (whole / "runs.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("module", "name", "moment"),
    [
        (suite, "append_record", 3),
        (suite, "save_checkpoint", 4),
        (suite, "write_json", 1),
        (sweep, "write_runs", 0),
        (sweep, "write_runs", 2),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_it_ends_as_if_nothing_had_been(
    whole, tmp_path, monkeypatch, module, name, moment, after
):
    do, count = getattr(module, name), [0]

    def interrupted(path, content):
        count[0] += 1
        if count[0] > moment and not after:
            raise _Killed
        do(path, content)
        if count[0] > moment:
            raise _Killed

    plan = plan_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(_Killed):
            Sweep(plan, tmp_path / "sweep").run(1)
    Sweep(plan, tmp_path / "sweep").run(1)

    assert left_of_sweep(tmp_path / "sweep") == left_of_sweep(whole)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_take_every_run_once(tmp_path, count):
    plan = plan_of(tmp_path)
    shards = [Sweep(plan, tmp_path, shard=(i, count)).runs for i in range(1, count + 1)]

    taken = [config for shard in shards for config in shard]

    assert sorted(map(run_path, taken)) == sorted(map(run_path, plan.runs))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert list(shards[0]) == list(plan.runs)[::count]


def test_shards_one_after_the_other_are_the_whole(whole, tmp_path):
    plan = plan_of(tmp_path)

    for i in (3, 1, 2):
        Sweep(plan, tmp_path / "sweep", shard=(i, 3)).run(1)

    assert left_of_sweep(tmp_path / "sweep") == left_of_sweep(whole)


def test_no_line_is_lost_where_two_gather_at_once(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    first, second = (Sweep(plan, tmp_path / "sweep", shard=(i, 2)) for i in (1, 2))
    write, begun, go_on = sweep.write_runs, threading.Event(), threading.Event()
    second.run(1)

    def slow(path, runs):
        if threading.current_thread() is thread:
            begun.set()
            assert go_on.wait(10)
        write(path, runs)

    monkeypatch.setattr(sweep, "write_runs", slow)
    thread = threading.Thread(target=first.gather)
    thread.start()  # it has read what is there, and has not yet written it
    assert begun.wait(10)
    config = first.runs[0]
    train(config, first.folder(config))
    other = threading.Thread(target=second.gather)
    other.start()
    other.join(0.2)  # it waits for the first
    go_on.set()
    thread.join()
    other.join()

    assert len(read_runs(tmp_path / "sweep")) == len(second.runs) + 1


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    plan = plan_of(tmp_path)
    task = Sweep(plan, tmp_path / "sweep")
    config = plan.runs[1]
    Sweep(plan, task.path, shard=(4, 4)).run(1)

    with task.folder(config).opened(config):
        ended = task.run(1)

    assert [o.status for o in ended] == ["finished", "busy", "finished"]
    assert len(read_runs(task.path)) == 3
    assert [o.config for o in task.run(1)] == [config]
    assert [TrainConfig(**e["config"]) for e in read_runs(task.path)] == list(plan.runs)


def test_a_run_that_fails_stops_no_other_and_is_tried_again(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    task = Sweep(plan, tmp_path / "sweep")
    bad, worse = plan.runs[0], plan.runs[2]
    whole = workers.train

    def fail(config, *arguments, **options):
        if config == bad:
            raise ValueError("fc1.weight: collapsed")
        if config == worse:
            raise ZeroDivisionError("a defect")
        return whole(config, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "train", fail)
        ended = task.run(1)

    assert [o.status for o in ended] == ["failed", "finished", "failed", "finished"]
    assert [task.status(c) for c in plan.runs] == ["failed", "finished", "failed", "finished"]
    assert task.is_failed(ended)
    assert not task.is_failed(ended[1:2])
    assert task.folder(bad).error.read_text() == "fc1.weight: collapsed\n"
    text = task.folder(worse).error.read_text()
    assert text.startswith("Traceback")
    assert text.endswith("ZeroDivisionError: a defect\n")
    assert len(read_runs(task.path)) == 2
    assert [o.status for o in task.run(1)] == ["finished", "finished"]
    assert not list(task.path.rglob("error.txt"))
    assert len(read_runs(task.path)) == 4


def test_under_torchrun_a_failure_is_said_once_no_other_process_is_at_work(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    first, second = (Sweep(plan, tmp_path / "sweep", shard=(i, 2)) for i in (1, 2))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with monkeypatch.context() as patch:
        patch.setattr(workers, "train", lambda *_, **__: 1 / 0)
        ended = first.run(1)

    assert [outcome.status for outcome in ended] == ["failed", "failed"]
    assert not first.is_failed(ended)
    assert second.is_failed(second.run(1))
    assert not first.is_failed(first.run(1))


def test_a_plan_may_grow_and_shrink_and_what_is_finished_stays(whole, tmp_path, monkeypatch):
    ran, do = [], workers.train
    monkeypatch.setattr(
        workers, "train", lambda config, *a, **k: ran.append(config) or do(config, *a, **k)
    )
    path = tmp_path / "sweep"
    small = plan_of(tmp_path, SMALL.replace("[0.9, 0.98]", "[0.98]"))
    older = Sweep(small, path)
    older.run(1)
    grown = plan_of(tmp_path)
    Sweep(grown, path).run(1)

    assert [config.sparsity for config in ran] == [0.98, 0.98, 0.9, 0.9]
    assert (path / "plan.toml").read_text() == SMALL
    assert left_of_sweep(path) == left_of_sweep(whole)
    older.gather()  # by a process that still goes by the plan as it was
    assert left_of_sweep(path) == left_of_sweep(whole)

    Sweep(small, path).run(1)
    assert [entry["config"]["sparsity"] for entry in read_runs(path)] == [0.98, 0.98]
    Sweep(grown, path).run(1)
    assert left_of_sweep(path) == left_of_sweep(whole)
    assert len(ran) == 4


def test_other_settings_and_other_plans_are_refused_before_any_work(tmp_path):
    path = tmp_path / "sweep"
    Sweep(plan_of(tmp_path, SMALL.replace('["snip", "erk"]', '["erk"]')), path).run(1)
    before = left_of_sweep(path), (path / "plan.toml").read_bytes()

    with pytest.raises(
        ValueError, match=r"digits-mlp-0\.9.erk-0: .*other settings \(epochs = 2, not 3\)"
    ):
        Sweep(plan_of(tmp_path, SMALL.replace("epochs = 2", "epochs = 3")), path).run(1)
    with pytest.raises(ValueError, match="sweep: holds another plan, of which this one has no run"):
        Sweep(plan_of(tmp_path, SMALL.replace("[0]", "[1]")), path).run(1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("dear")
    with pytest.raises(ValueError, match="other: holds other files than those of a sweep"):
        Sweep(plan_of(tmp_path), tmp_path / "other").run(1)
    assert (left_of_sweep(path), (path / "plan.toml").read_bytes()) == before


def test_fresh_takes_a_folder_whose_runs_have_other_settings(tmp_path):
    path = tmp_path / "sweep"
    Sweep(plan_of(tmp_path), path).run(1)
    plan = plan_of(tmp_path, SMALL.replace("epochs = 2", "epochs = 1"))
    task = Sweep(plan, path)
    config = plan.runs[0]
    with (
        task.folder(config).opened(load_plan(path / "plan.toml").runs[0]),
        pytest.raises(ValueError, match="another process is training in it"),
    ):
        task.run(1, fresh=True)

    assert len(task.run(1, fresh=True)) == 4

    assert [entry["history"]["epoch"] for entry in read_runs(path)] == [[1]] * 4
    assert (path / "plan.toml").read_bytes() == plan.content


def test_a_damaged_result_is_named(whole, tmp_path):
    path = tmp_path / "sweep"
    Sweep(plan_of(tmp_path, SMALL.replace("[0.9, 0.98]", "[0.9]")), path).run(1)
    (path / "runs" / "digits-mlp-0.9" / "erk-0" / "results.json").write_text("{")

    with pytest.raises(ValueError, match=r"erk-0.results\.json: expected JSON"):
        Sweep(load_plan(path / "plan.toml"), path).run(1)


def test_torchrun_says_the_shard_and_the_gpu(monkeypatch):
    assert parse_shard(None) == (1, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert parse_shard(None) == (3, 5)
    assert parse_shard("1/2") == (1, 2)

    chosen = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    workers._choose_gpu("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for device in ("cpu", "cuda:0", "cuda"):
        workers._choose_gpu(device)
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="at most one process for each of 2 GPUs, got local rank"):
        workers._choose_gpu("cuda")


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_shards_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="--shard: expected i/n, such as 1/4, with i from 1 to n"):
        parse_shard(text)


def test_threads_that_the_machine_decides_are_those_of_its_runs(tmp_path, monkeypatch):
    plan = plan_of(tmp_path, SMALL.replace("[0.9, 0.98]", "[0.9]") + "threads = 0\n")
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    task = Sweep(plan, tmp_path / "sweep", shard=(1, 2))
    task.run(1)

    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    Sweep(plan, tmp_path / "sweep", shard=(2, 2)).run(1)

    assert [entry["config"]["threads"] for entry in read_runs(task.path)] == [2, 1]
    with pytest.raises(ValueError, match=r"other settings \(threads = 2, not 1\)"):
        task.run(1)


def test_as_many_jobs_as_there_are_cpus_for_their_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    plan = plan_of(tmp_path, "[[grid]]\nthreads = 2\n[[grid]]\nseeds = [9]\n")

    assert default_jobs(plan) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_jobs(plan) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_jobs(plan) == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert default_jobs(plan_of(tmp_path, "")) == 12
    assert default_jobs(plan_of(tmp_path, 'device = "cuda"')) == 1
