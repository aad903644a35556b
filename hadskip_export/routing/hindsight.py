"""What routing could come to: the best route for each input, known afterwards."""

import numpy as np

BISECTIONS = 60


def hindsight(cost: np.ndarray, layers: np.ndarray, mean_layers: float) -> float:
    """The least mean cost at which every input takes one of some routes and all run so many layers on average at most.

    No gates can do better, and much of it is luck that none can have. Where the mean falls between two choices, a
    mixture of them counts: that makes it the value of a linear program, here by its dual.

    Args:
        cost: of each route for each input, float [R, n].
        layers: of each route, [R].
        mean_layers: at least the shortest route's.
    """
    low, high = 0.0, float(cost.max() - cost.min()) + 1.0  # the price of a layer; at the highest all are shortest
    for _ in range(BISECTIONS):
        price = (low + high) / 2
        chosen = (cost + price * layers[:, None]).argmin(axis=0)
        low, high = (price, high) if layers[chosen].mean() > mean_layers else (low, price)
    return float((cost + high * layers[:, None]).min(axis=0).mean() - high * mean_layers)
