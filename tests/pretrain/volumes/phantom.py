import numpy as np


def blob(shape=(20, 24, 28), seed=0) -> np.ndarray:
    """Air of -1000 HU round a bright box with noise in it: (d, h, w) int16."""
    random = np.random.default_rng(seed)
    volume = np.full(shape, -1000, np.int16)
    box = tuple(slice(n // 4, n - n // 4) for n in shape)
    volume[box] = random.integers(0, 200, volume[box].shape)
    return volume
