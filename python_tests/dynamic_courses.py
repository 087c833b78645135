"""Small trainings for the tests of dynamic sparsity."""

import torch
from torch import nn

import fullspectrum_ext as fs


class Lion(torch.optim.Optimizer):
    """An optimizer that torch does not have: the sign of two averages."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                average = state["exp_avg"]
                update = average.lerp(parameter.grad, 1 - first).sign_()
                parameter.add_(update, alpha=-group["lr"])
                average.lerp_(parameter.grad, 1 - second)


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02, initial_accumulator_value=0.25),
    "Lion": lambda p: Lion(p, lr=1e-3),
}

# Options with which a method acts often in a short training.
METHODS = {
    "set": {},
    "rigl": {},
    "itop": {},
    "itop:rigl": {},
    "snfs": {},
    "dsr": {"threshold": 0.01},
    "mest": {"gradient_weight": 0.1},
    "mest:soft": {},
    "granet": {"sparsity": 0.85},
    "gmp": {"sparsity": 0.9},
    "set:ramanujan": {"candidates": 2},
    "topkast": {"penalty": 0.01},
    "rigl:ramanujan": {"candidates": 2},
}


def mlp():
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10)).double()


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Conv2d(8, 12, 3, stride=2, padding="valid", groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(48, 10),
    ).double()


SHAPES = {mlp: (20,), conv: (3, 6, 6)}


class Course:
    """A network in training, with all that belongs to it."""

    def __init__(self, build=mlp, backend="sparse", method="rigl", optimizer="momentum", **options):
        torch.manual_seed(1)
        self.build = build
        self.model = build()
        masks = fs.prune(self.model, "erk", sparsity=0.7, seed=2)
        fs.sparsify(self.model, masks, backend=backend)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        options = {"steps": 200, "every": 5, "seed": 3, **options}
        self.dynamic = fs.DynamicSparsity(self.model, self.optimizer, method, **options)
        self.data = torch.Generator().manual_seed(4)

    def train(self, steps):
        for _ in range(steps):
            y = torch.randint(10, (16,), generator=self.data)
            x = torch.randn(16, *SHAPES[self.build], generator=self.data, dtype=torch.float64)
            x[:, 0] += y.view(-1, *[1] * (x.dim() - 2))
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.dynamic.step()
        return self

    def dense(self):
        """Every parameter and average, the weights dense."""
        return fs.densify(self.model).state_dict()

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "dynamic": self.dynamic.state_dict(),
            "data": self.data.get_state(),
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.dynamic.load_state_dict(state["dynamic"])
        self.data.set_state(state["data"])
        return self
