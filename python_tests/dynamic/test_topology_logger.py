"""What is told of the topology in a training loop of one's own."""

import pytest
import torch
from dynamic_courses import Course, conv, mlp

import fullspectrum_ext as fs
from fullspectrum_ext.masks import Degrees


class _Writer:
    """What it asks of TensorBoard's SummaryWriter."""

    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def add_histogram(self, name, values, step):
        self.histograms[name, step] = values.tolist()


def test_degrees_by_hand():
    masks = fs.MaskSet({"a": torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])})
    degrees = masks.degrees("a")
    assert degrees.inward.tolist() == [2, 0, 3]
    assert degrees.outward.tolist() == [2, 2, 1, 0]
    assert degrees.histograms() == {
        "in": [[0, 1], [2, 1], [3, 1]],
        "out": [[0, 1], [1, 1], [2, 2]],
    }


def test_degrees_of_a_convolution_are_those_of_its_taps():
    mask = torch.zeros(2, 2, 1, 3)
    mask[0, 1, 0, 2] = mask[1, 1, 0, 2] = mask[1, 0, 0, 0] = 1
    degrees = fs.MaskSet({"conv": mask}).degrees("conv")
    assert degrees.inward.tolist() == [1, 2]
    assert degrees.outward.tolist() == [1, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1)])
def test_degrees_of_nothing(shape):
    degrees = fs.MaskSet({"a": torch.zeros(shape)}).degrees("a")
    assert degrees.inward.tolist() == [0] * shape[0]
    assert degrees.outward.tolist() == [0] * shape[1]
    assert Degrees(*degrees).histograms() == {
        "in": [[0, shape[0]]] if shape[0] else [],
        "out": [[0, shape[1]]] if shape[1] else [],
    }


@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize("build", [mlp, conv])
def test_a_writer_gets_what_there_is_after_each_update(build, backend):
    writer, told = _Writer(), []
    log = fs.dynamic.TopologyLogger(writer, steps=100)

    def on_update(update):
        log(update)
        told.append((update, course.dynamic.masks))

    course = Course(
        build, backend, "set", steps=9, every=4, seed=0, explored=True, on_update=on_update
    )
    course.train(9)

    assert [update.step for update, _ in told] == [4, 8]
    for update, masks in told:
        step = 100 + update.step
        assert writer.scalars["topology/churn", step] == update.total.churn
        assert writer.scalars["topology/nnz", step] == masks.nnz
        assert set(update.layers) == set(masks)
        for name, layer in update.layers.items():
            assert writer.scalars[f"overlap/{name}", step] == layer.overlap
            assert writer.scalars[f"explored/{name}", step] == layer.explored
            degrees = masks.degrees(name)
            assert writer.histograms[f"in_degree/{name}", step] == degrees.inward.tolist()
            assert writer.histograms[f"out_degree/{name}", step] == degrees.outward.tolist()
    taken = log.take()
    assert taken["topology_steps"] == [104, 108]
    assert taken["topology_overlap"] == [round(update.total.overlap, 6) for update, _ in told]
    assert log.take()["topology_steps"] == []


def test_what_was_not_asked_for_is_not_written():
    writer = _Writer()
    log = fs.dynamic.TopologyLogger(writer)
    Course(steps=9, every=4, seed=0, on_update=log).train(9)
    assert not any("explored" in name for name, _ in writer.scalars)
    assert log.take()["topology_explored"] == [None]


def test_tensorboard_reads_it(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="needs tensorboard")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        log = fs.dynamic.TopologyLogger(writer)
        Course(steps=9, every=4, seed=0, on_update=log).train(9)
    found = events.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in found.Scalars("topology/churn")] == log.take()["topology_steps"]
    assert "in_degree/0.weight" in found.Tags()["histograms"]
