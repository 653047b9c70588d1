"""The numbered equations of chapter 1, each against another way to compute it."""

import itertools
import math

import numpy as np
import scipy.fft
import scipy.stats
import torch
from torchvision.transforms.v2.functional import normalize

from gradcam_lib.quality import Fingerprints, disputes, fingerprints, near_duplicates

rng = np.random.default_rng(1)
IMAGES = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def bits(hashes):
    return np.unpackbits(hashes[:, None].view(np.uint8), axis=1)


def test_equation_1_1_mean():
    x = IMAGES / 255
    N, H, W, _ = x.shape
    mean = [math.fsum(x[..., c].ravel()) / (N * H * W) for c in range(3)]
    np.testing.assert_allclose(torch.from_numpy(x).mean(dim=(0, 1, 2)), mean, rtol=1e-12)


def test_equation_1_2_standard_deviation():
    x = IMAGES / 255
    N, H, W, _ = x.shape
    mean = x.mean(axis=(0, 1, 2))
    std = [math.sqrt(math.fsum((x[..., c].ravel() - mean[c]) ** 2) / (N * H * W)) for c in range(3)]
    np.testing.assert_allclose(torch.std(torch.from_numpy(x), dim=(0, 1, 2), correction=0), std, rtol=1e-12)


def test_equation_1_3_cosine_transform():
    """SciPy's transform of type 2 has the factor 2 for each direction; frequencies 1 to 8 are kept."""
    grey = IMAGES @ [0.299, 0.587, 0.114]
    C = scipy.fft.dctn(grey, type=2, axes=(1, 2))[:, 1:9, 1:9] / 4
    term = sum(
        grey[0, i, j] * math.cos(math.pi * 2 * (2 * i + 1) / 64) * math.cos(math.pi * 5 * (2 * j + 1) / 64)
        for i, j in itertools.product(range(32), repeat=2)
    )
    assert math.isclose(C[0, 2 - 1, 5 - 1], term, rel_tol=1e-10)
    C = C.reshape(len(C), -1)
    np.testing.assert_array_equal(bits(fingerprints(IMAGES).hashes), C > np.median(C, axis=1, keepdims=True))


def test_equation_1_4_hamming_distance():
    prints = fingerprints(IMAGES)
    pairs = near_duplicates(prints, max_distance=64, min_similarity=-1)
    assert len(pairs) == 15
    for pair in pairs.itertuples():
        a, b = (int(prints.hashes[k]) for k in (pair.first, pair.second))
        assert pair.distance == (a ^ b).bit_count() == np.abs(bits(prints.hashes[[pair.first]]).astype(int)
                                                              - bits(prints.hashes[[pair.second]])).sum()  # fmt: skip


def test_equation_1_5_similarity_of_edges():
    thumbnails = rng.integers(0, 256, (2, 16, 16), dtype=np.uint8)

    def edges(t):
        right = [int(t[i, j + 1]) - int(t[i, j]) for i in range(16) for j in range(15)]
        return right + [int(t[i + 1, j]) - int(t[i, j]) for i in range(15) for j in range(16)]

    e, f = map(edges, thumbnails)
    cosine = sum(a * b for a, b in zip(e, f, strict=True)) / (math.hypot(*e) * math.hypot(*f))
    pairs = near_duplicates(Fingerprints(np.zeros(2, np.uint64), thumbnails), min_similarity=-1)
    assert math.isclose(pairs["similarity"][0], cosine, abs_tol=1e-12)


def test_equation_1_6_entropy():
    counts = rng.integers(0, 20, (50, 10)) * rng.integers(0, 2, (50, 10)) + np.eye(10, dtype=int)[np.arange(50) % 10]
    found = disputes(counts, np.zeros(50, int))["entropy"]
    np.testing.assert_allclose(found, scipy.stats.entropy(counts, axis=1, base=2), atol=1e-12)


def test_equation_1_7_normalise():
    x = IMAGES / 255
    mean, std = x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))
    z = (x - mean) / std
    library = normalize(torch.from_numpy(x).permute(0, 3, 1, 2), mean.tolist(), std.tolist())
    np.testing.assert_allclose(np.moveaxis(library.numpy(), 1, 3), z, atol=1e-12)
    np.testing.assert_allclose(z.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=(0, 1, 2)), 1, atol=1e-12)


def test_equation_1_8_one_hot():
    y = rng.integers(0, 10, 40)
    np.testing.assert_array_equal(np.eye(10, dtype=int)[y], torch.nn.functional.one_hot(torch.from_numpy(y), 10))


def test_equation_1_9_cross_entropy_with_one_hot_labels():
    logits = torch.from_numpy(rng.normal(size=(40, 10)))
    y = rng.integers(0, 10, 40)
    log_p = logits.log_softmax(dim=1).numpy()
    by_sum = -(np.eye(10)[y] * log_p).sum(axis=1)
    np.testing.assert_array_equal(by_sum, -log_p[np.arange(40), y])
    library = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none")
    np.testing.assert_allclose(by_sum, library, atol=1e-12)
