"""Small neural networks on the paper's features, one a metric. PyTorch is optional, and imported when needed.

They begin as Keras begins them, which the paper used: weights uniform after Glorot and Bengio (2010), biases
zero.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmpilot.errors import ConfigError
from llmpilot.predict.paper.search import threads
from llmpilot.predict.prediction import Floats

Loss = Callable[[Any, Any], Any]


def torch_or_cure() -> Any:
    """Return the torch module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise ConfigError(
            "this predictor is a neural network and needs PyTorch, which is not installed",
            cure="pip install 'llm-pilot[neural]'",
        ) from None
    return torch


@dataclass(frozen=True)
class Network:
    """What descent needs beside the rows: layers, a loss of (predicted, measured), optimiser and schedule.

    `rates` are learning rates, each from its number of steps on.
    """

    layers: Callable[[int], Any]
    loss: Loss
    optimizer: str
    rates: tuple[tuple[int, float], ...]
    batch_size: int
    epochs: int


@contextmanager
def own_randomness(seed: int) -> Iterator[Any]:
    """Yield torch with a random state of its own, and as many threads as are ours; restore both."""
    torch = torch_or_cure()
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(min(threads(), before))
        try:
            yield torch
        finally:
            torch.set_num_threads(before)


def train(network: Network, x: Floats, y: Floats, seed: int) -> Any:
    """Return the trained layers; `x` [n, features], `y` [n] in ms."""
    with own_randomness(seed) as torch:
        layers = network.layers(x.shape[1])
        for layer in layers:
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv1d):
                torch.nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    torch.nn.init.zeros_(layer.bias)
        descend(network, layers, x, y, shuffle=True)
        return layers


def descend(network: Network, layers: Any, x: Floats, y: Floats, *, shuffle: bool) -> None:
    """Train the layers on, in place."""
    torch = torch_or_cure()
    rows = torch.tensor(x, dtype=torch.float32)
    measured = torch.tensor(y, dtype=torch.float32)
    # Keras' epsilon; torch's own is a tenth of it.
    options = {"eps": 1e-7} if network.optimizer == "Adam" else {}
    optimizer = getattr(torch.optim, network.optimizer)(
        layers.parameters(), lr=network.rates[0][1], **options
    )
    layers.train()
    step = 0
    for _ in range(network.epochs):
        order = torch.randperm(len(rows)) if shuffle else torch.arange(len(rows))
        for batch in order.split(network.batch_size):
            for since, rate in network.rates:
                if step == since:
                    optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            network.loss(layers(rows[batch])[:, 0], measured[batch]).backward()
            optimizer.step()
            step += 1
    layers.eval()


def answer(layers: Any, x: Floats) -> Floats:
    """Return what the layers predict for rows, [n] in ms."""
    torch = torch_or_cure()
    with torch.no_grad():
        return layers(torch.tensor(x, dtype=torch.float32))[:, 0].double().numpy()  # type: ignore[no-any-return]


def relative_log_error(predicted: Any, measured: Any) -> Any:
    """Return the mean of |log(1 + measured) - log(1 + predicted)| / log(1 + measured): PerfNet's loss."""
    truth = measured.log1p()
    return ((truth - predicted.log1p()) / truth).abs().mean()


def squared_log_error(predicted: Any, measured: Any) -> Any:
    """Return the mean of (log(1 + measured) - log(1 + predicted))^2: PerfNetV2's loss."""
    return ((measured.log1p() - predicted.log1p()) ** 2).mean()


def percentage_error(predicted: Any, measured: Any) -> Any:
    """Return the mean of |predicted / measured - 1| in percent: Morphling's loss."""
    return 100 * ((predicted - measured) / measured.clamp(min=1e-7)).abs().mean()
